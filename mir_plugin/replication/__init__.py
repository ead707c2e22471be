"""The paper's main experiment in miniature: does MIR before fine-tuning order checkpoints as their scores after it do?

Here, as in ``mir_plugin.commands``, everything meets: training, measuring, lmms-eval and reports. Nothing imports this
package but the command ``mir demo`` and the examples of the repository.
"""
