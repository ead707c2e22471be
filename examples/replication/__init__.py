"""The paper's studies in miniature: does MIR before fine-tuning order checkpoints as scores after it?"""
