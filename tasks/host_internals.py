"""Everything of other programs that this package touches although they do not promise it, in one table.

Each row names the object, why it is touched, and what users lose without it. Code that changes or calls one takes it
from its row (``found_in``), which complains where the installed program differs; ``tests/hosts/test_host_internals.py``
holds every row against the sources of the installed versions. Imports nothing of any host.

Attributes by which model objects hold their parts: ``mir_plugin.model_adapters.in_memory.host_parts``.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import ModuleType
from typing import Any

LMMS_EVAL, VLMEVALKIT, TRANSFORMERS, ACCELERATE = "lmms-eval", "VLMEvalKit", "transformers", "accelerate"


@dataclass(frozen=True)
class Internal:
    """One object of a host.

    Attributes:
        host: the program.
        module: where the object is defined or bound; "run" is VLMEvalKit's script.
        name: dotted inside the module; "" for rows that only need ``says``.
        why: what it is touched for.
        without_it: what users lose if it is not as expected.
        takes: parameters or fields that have to be there.
        says: texts of the module's source that what we do relies on.
    """

    host: str
    module: str
    name: str
    why: str
    without_it: str
    takes: tuple[str, ...] = ()
    says: tuple[str, ...] = ()

    def found_in(self, module: ModuleType) -> Any:
        """The object.

        Raises:
            AttributeError: if the module has no such name.
            TypeError: if the object takes other parameters.
        """
        value: Any = module
        for part in self.name.split("."):
            value = getattr(value, part)
        missing = set(self.takes) - set(inspect.signature(value).parameters) if self.takes else set()
        if missing:
            raise TypeError(f"{self.name}{inspect.signature(value)} has no {', '.join(sorted(missing))}")
        return value


TASK_INDEX = Internal(
    LMMS_EVAL,
    "lmms_eval.tasks",
    "TaskManager.initialize_tasks",
    why="replaced, so that our task folder is indexed behind the user's",
    without_it="the task `mir` is found only with `--include_path {tasks_dir}`",
    takes=("include_path",),
)
MODEL_BASE = Internal(
    LMMS_EVAL,
    "lmms_eval.api.model",
    "lmms",
    why="gets the method `mir`, which the evaluator calls by the requests' type",
    without_it="only `--model mir_llava` can run the task `mir`; add `--include_path {tasks_dir}` if it is not found",
)
MODEL_CREATION = Internal(
    LMMS_EVAL,
    "lmms_eval.api.model",
    "lmms.create_from_arg_string",
    why="replaced, to know which model the tasks that are built next are for",
    without_it="`mir_samples=` of an earlier model in one process may be refused for a later one",
    takes=("arg_string",),
)
EVALUATE = Internal(
    LMMS_EVAL,
    "lmms_eval.evaluator",
    "evaluate",
    why="replaced, so that our tasks run first, and an error in a later one says where MIR was saved",
    without_it="MIR may run after hours of benchmarks, and is lost with them",
    takes=("task_dict", "limit"),
    says=("task.args = cli_args", "getattr(lm, reqtype)(cloned_reqs)"),
)
PADDING = Internal(
    LMMS_EVAL,
    "lmms_eval.evaluator",
    "_clone_padding_request",
    why="its mark tells repeated requests of uneven processes from real ones",
    without_it="samples might count twice with several processes",
    says=('metadata["__padding_only__"] = True',),
)
COMMAND_LINE = Internal(
    LMMS_EVAL,
    "lmms_eval.cli.dispatch",
    "main",
    why="called by the script `lmms_eval`",
    without_it="`lmms_eval` does not start; use `lmms-eval`",
)
SINGLE_RUN = Internal(
    LMMS_EVAL,
    "lmms_eval.__main__",
    "cli_evaluate_single",
    why="replaced, so that `lmms_eval` exits with 1 where a task failed",
    without_it="the exit code is 0 whatever happened",
    takes=("args",),
    says=("evaluator.simple_evaluate(", "results, samples = cli_evaluate_single(args)"),
)
MODEL_MANIFEST = Internal(
    LMMS_EVAL,
    "lmms_eval.models.registry_v2",
    "ModelManifest",
    why="made for our model classes",
    without_it="`--model mir_llava` is unknown",
    takes=("model_id", "simple_class_path", "aliases"),
)
OUTPUT_FOLDER = Internal(
    LMMS_EVAL,
    "lmms_eval.loggers.evaluation_tracker",
    "GeneralConfigTracker.log_experiment_args",
    why="names the folder below --output_path where results of a model go",
    without_it="MIR is saved with the other results only, after the last benchmark",
    takes=("model_source", "model_args", "system_instruction", "chat_template", "fewshot_as_multiturn"),
    says=(
        "self.model_name_sanitized = sanitize_model_name",
        "path = path.joinpath(self.general_config_tracker.model_name_sanitized)",
    ),
)
REQUEST_BUILDING = Internal(
    LMMS_EVAL,
    "lmms_eval.api.task",
    "Task.build_all_requests",
    why="overridden, to keep our requests out of a cache that knows only the task's name",
    without_it="requests of other samples may be taken for ours",
    takes=("cache_requests", "rewrite_requests_cache"),
)
METRIC_BYPASS = Internal(
    LMMS_EVAL,
    "lmms_eval.api.task",
    "Task.override_metric",
    why="overridden, so that --predict_only leaves MIR its value",
    without_it="--predict_only shows 999 in MIR's place",
    takes=("metric_name",),
)
TASK_CONFIG = Internal(
    LMMS_EVAL,
    "lmms_eval.api.task",
    "TaskConfig",
    why="made by our task, which loads no data set and so calls no constructor of its base class",
    without_it="the task `mir` cannot be built",
    takes=("task", "task_alias", "tag", "output_type", "test_split", "num_fewshot", "metadata"),
)
INSTANCE = Internal(
    LMMS_EVAL,
    "lmms_eval.api.instance",
    "Instance",
    why="a request of our own type, with the measurement among its arguments",
    without_it="the task `mir` cannot be run",
    takes=("request_type", "arguments", "idx", "metadata"),
)
FILTERS = Internal(
    LMMS_EVAL,
    "lmms_eval.filters",
    "build_filter_ensemble",
    why="takes the one answer of each request",
    without_it="the task `mir` cannot be built",
    takes=("filter_name", "components"),
)
RESPONSE_CACHE = Internal(
    LMMS_EVAL,
    "lmms_eval.caching.response_cache",
    "ResponseCache",
    why="`do_sample` in a request keeps its answer out of --use_cache",
    without_it="a partly cached run gives no MIR",
    says=('"do_sample"',),
)
WORKERS = Internal(
    LMMS_EVAL,
    "lmms_eval.models.chat.async_hf_model",
    "AsyncHFModel",
    why="holds module and processor in the objects of its list `_workers`",
    without_it="`--model async_hf_model` cannot be measured",
    says=("self._workers: List[_WorkerResources] = ", "_WorkerResources(model=model, processor=processor"),
)
DATA_SET_BASE = Internal(
    VLMEVALKIT,
    "vlmeval.dataset",
    "ImageBaseDataset",
    why="base of the data set MIR",
    without_it="`--data MIR` is unknown",
)
DATA_SET_CLASSES = Internal(
    VLMEVALKIT,
    "vlmeval.dataset",
    "DATASET_CLASSES",
    why="gets the data set MIR",
    without_it="`--data MIR` is unknown",
)
DATA_SET_NAMES = Internal(
    VLMEVALKIT,
    "vlmeval.dataset",
    "SUPPORTED_DATASETS",
    why="gets the name MIR",
    without_it="`--data MIR` is unknown",
)
DATA_SET_TYPE = Internal(
    VLMEVALKIT,
    "vlmeval.dataset",
    "DATASET_TYPE",
    why="tells multiple choice, which our models ask in their own words",
    without_it="our models cannot answer benchmarks",
)
VLM_BASE = Internal(
    VLMEVALKIT,
    "vlmeval.vlm",
    "BaseModel",
    why="base of the class MirModel",
    without_it="`--model NAME=CHECKPOINT_DIR`, and MirModel in a --config file, are unknown",
)
KNOWN_MODELS = Internal(
    VLMEVALKIT,
    "vlmeval.config",
    "supported_VLM",
    why="gets the checkpoints named behind --model",
    without_it="`--model NAME=CHECKPOINT_DIR` is unknown",
)
INFERENCE = Internal(
    VLMEVALKIT,
    "vlmeval.inference",
    "infer_data",
    why="replaced, to measure where it would ask questions",
    without_it="`--data MIR` asks questions instead of measuring",
    takes=("model", "model_name", "work_dir", "dataset", "out_file"),
    says=("_PREV.pkl", "supported_VLM[model_name]", "def infer_data_job("),
)
MODELS_BUILT_IN_INFERENCE = Internal(
    VLMEVALKIT,
    "vlmeval.inference",
    "supported_VLM",
    why="builds a model that is not loaded yet",
    without_it="`--data MIR` fails unless a benchmark stands before it",
)
RUN_SCRIPT = Internal(
    VLMEVALKIT,
    "run",
    "",
    why="run by `mir-vlmeval`",
    without_it="`mir-vlmeval` does not measure",
    says=("infer_data_job(", "dataset.evaluate(result_file"),
)
LOADING = Internal(
    TRANSFORMERS,
    "transformers.modeling_utils",
    "PreTrainedModel.from_pretrained",
    why="replaced inside hosts, to note which parameters a checkpoint did not fill",
    without_it="a checkpoint that lacks weights may be measured with random ones",
    takes=("pretrained_model_name_or_path",),
    says=('kwargs.pop("output_loading_info"',),
)
AUTOCAST_WRAPPER = Internal(
    ACCELERATE,
    "accelerate.accelerator",
    "Accelerator.prepare_model",
    why="its `_original_forward` is the model's own forward pass, without the training's mixed precision",
    without_it="live MIR is computed in the training's precision",
    says=("model._original_forward = model.forward",),
)

INTERNALS: tuple[Internal, ...] = tuple(value for value in globals().values() if isinstance(value, Internal))
