"""simple_evaluate() over a tiny random LLaVA. Importing lmms-eval's evaluator alone takes half a minute."""

import gc
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from mir_plugin.errors import MirError
from mir_plugin.measurement.measure import measure
from mir_plugin.model_adapters import LoadOptions, load_adapter
from mir_plugin.results import MirResult
from mir_plugin.samples.embedded import embedded_samples
from mir_plugin.tasks.lmms_eval.measurement import subset

pytestmark = [pytest.mark.slow, pytest.mark.host]


@pytest.fixture(scope="module")
def lmms_eval() -> Any:
    import lmms_eval.evaluator
    import lmms_eval.tasks  # noqa: F401  # an attribute of what is returned

    return lmms_eval


def evaluate(lmms_eval: Any, model: Any, model_args: str = "", tasks: str = "mir", **kwargs: Any) -> dict[str, Any]:
    mmstar = Path(lmms_eval.tasks.__file__).parent / "mmstar"
    manager = lmms_eval.tasks.TaskManager(include_defaults=False, include_path=str(mmstar), model_name=model)
    results: dict[str, Any] = lmms_eval.evaluator.simple_evaluate(
        model=model, model_args=model_args, tasks=tasks.split(","), task_manager=manager, **kwargs
    )
    gc.collect()  # a model's options choose samples as long as it lives
    return results


def ours(checkpoint: Path) -> str:
    return f"pretrained={checkpoint},device=cpu,family=huggingface"


@pytest.fixture(scope="module")
def direct(tiny_llava: Path) -> MirResult:
    """The first four embedded samples, without any host."""
    adapter = load_adapter(tiny_llava, LoadOptions(device="cpu", family="huggingface"))
    return measure(adapter, subset(embedded_samples(), range(4)), checkpoint=str(tiny_llava))


def test_mir_and_a_benchmark_come_from_one_loaded_checkpoint(
    lmms_eval: Any, offline: Path, tiny_llava: Path, direct: MirResult
) -> None:
    found = evaluate(
        lmms_eval,
        "mir_hf",
        ours(tiny_llava),
        "mir,mmstar,mir_digits",
        limit=4,
        batch_size=3,
        gen_kwargs="max_new_tokens=4",
    )
    mir, task = found["results"]["mir"], found["configs"]["mir"]
    assert type(mir["mir,none"]) is float
    # Batches of 3 against single samples: after a final norm without trained weights all tokens have the same norm, so
    # that rounding decides which of them are outliers, and moves MIR by some 1e-4.
    assert mir["mir,none"] == pytest.approx(direct.mir, abs=1e-3)
    assert mir["mir_published_upper,none"] == pytest.approx(direct.mir_published_upper, abs=1e-3)
    assert mir["mir_stderr,none"] == pytest.approx(direct.uncertainty["standard_error"], rel=0.05)
    assert mir["mir_stderr_clt,none"] == "N/A"
    assert found["higher_is_better"]["mir"]["mir"] is False
    assert "average,none" in found["results"]["mmstar"]
    assert "exact_match,none" in found["results"]["mir_digits"]

    whole = MirResult.from_json(json.dumps(task["metadata"]["mir_result"]))
    assert whole.mir == mir["mir,none"]
    assert len(whole.layers) == len(direct.layers)
    assert whole.fingerprints == direct.fingerprints
    assert whole.samples["options"]["samples"] == "environment MIR_SAMPLES"
    first = json.loads(found["samples"]["mir"][0]["filtered_resps"][0])
    assert first["result"] == task["metadata"]["mir_result"]


def test_built_in_models_that_hold_a_hugging_face_module_can_be_measured(
    lmms_eval: Any, offline: Path, tiny_llava: Path, direct: MirResult
) -> None:
    pytest.importorskip("decord")
    found = evaluate(lmms_eval, "llava_hf", f"pretrained={tiny_llava},device_map=cpu,device=cpu,dtype=float32", limit=4)
    # Its processor resizes pictures with torchvision, ours with PIL, as the original code does.
    assert found["results"]["mir"]["mir,none"] == pytest.approx(direct.mir, abs=1e-3)


def test_predict_only_leaves_mir_its_value(lmms_eval: Any, offline: Path, tiny_llava: Path, direct: MirResult) -> None:
    asked = {"limit": 4, "predict_only": True, "gen_kwargs": "max_new_tokens=2"}
    found = evaluate(lmms_eval, "mir_hf", ours(tiny_llava), "mir,mir_digits", **asked)
    assert found["results"]["mir"]["mir,none"] == pytest.approx(direct.mir, abs=1e-3)
    assert found["results"]["mir_digits"]["bypass,none"] == 999


def test_each_of_several_models_in_one_process_chooses_its_own_samples(
    lmms_eval: Any, offline: Path, tiny_llava: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with two entries in a --config; the first model is still alive when the second one is loaded."""
    from mir_plugin.tasks.lmms_eval.model import MirModel

    alive: list[Any] = []
    monkeypatch.setattr(MirModel, "clean", lambda self: alive.append(self))
    first = evaluate(lmms_eval, "mir_hf", ours(tiny_llava) + ",mir_n_samples=2")
    second = evaluate(lmms_eval, "llava_hf", f"pretrained={tiny_llava},device_map=cpu,device=cpu", limit=3)
    assert len(alive) == 1
    counts = [found["configs"]["mir"]["metadata"]["mir_result"]["n_samples"] for found in (first, second)]
    assert counts == [2, 3]


def test_a_cached_subset_is_never_pooled_as_if_it_were_the_whole(
    lmms_eval: Any, offline: Path, tiny_llava: Path, direct: MirResult
) -> None:
    cache = str(offline / "cache")
    few, more = (
        evaluate(
            lmms_eval,
            "mir_hf",
            ours(tiny_llava),
            "mir,mir_digits",
            limit=limit,
            use_cache=cache,
            gen_kwargs="max_new_tokens=2",
        )
        for limit in (2, 4)
    )
    assert more["configs"]["mir"]["metadata"]["mir_result"]["n_samples"] == 4
    assert more["results"]["mir"]["mir,none"] == pytest.approx(direct.mir, abs=1e-6)
    assert few["results"]["mir"]["mir,none"] != more["results"]["mir"]["mir,none"]


def test_a_model_that_cannot_be_measured_is_refused_before_any_benchmark(lmms_eval: Any, offline: Path) -> None:
    from lmms_eval.api.model import lmms

    class Api(lmms):  # type: ignore[misc]
        asked: ClassVar[list[str]] = []

        def generate_until(self, requests: Any) -> list[str]:
            self.asked.append("generate_until")
            return [""] * len(requests)

        loglikelihood = generate_until_multi_round = generate_until

    with pytest.raises(MirError, match="Api cannot be measured, because no torch module"):
        evaluate(lmms_eval, Api(), tasks="mir,mmstar", limit=2)
    assert Api.asked == []


def test_samples_chosen_by_model_arguments_are_recorded(lmms_eval: Any, offline: Path, tiny_llava: Path) -> None:
    found = evaluate(lmms_eval, "mir_hf", ours(tiny_llava) + ",mir_samples=embedded,mir_n_samples=2,mir_seed=5")
    result = found["configs"]["mir"]["metadata"]["mir_result"]
    assert (result["n_samples"], result["samples"]["seed"]) == (2, 5)
    assert result["samples"]["options"]["n_samples"] == "model_args"


@pytest.mark.parametrize(
    ("model_args", "message"),
    [
        ("pretrained=x,base_lm=y", r"unknown model argument 'base_lm'; known: pretrained, base, base_llm, "),
        ("dtype=float32", "no checkpoint given"),
        ("pretrained=no-such-folder", "no checkpoint folder at no-such-folder"),
        ("pretrained=x,batch_size=auto", "--batch_size is 'auto'"),
        ("pretrained=x,device_memory=lots", "'lots'"),
    ],
)
def test_bad_model_arguments_are_one_clear_line(lmms_eval: Any, offline: Path, model_args: str, message: str) -> None:
    with pytest.raises(MirError, match=message) as error:
        evaluate(lmms_eval, "mir_llava", model_args)
    assert "\n" not in str(error.value)


def test_bad_samples_are_an_error_when_the_task_is_built(lmms_eval: Any, offline: Path) -> None:
    from mir_plugin.tasks.lmms_eval.task import MirTask

    with pytest.raises(MirError, match="unknown field 'sample'; known: samples, n_samples"):
        MirTask({"task": "mine", "sample": "embedded"})
    with pytest.raises(MirError, match="no-such-folder"):
        MirTask({"task": "mine", "samples": "folders:no-such-folder,neither"})


def test_answers_of_different_measurements_give_no_value(lmms_eval: Any, offline: Path) -> None:
    from mir_plugin.tasks.lmms_eval.task import MirTask

    task = MirTask({"task": "mir", "n_samples": 2})
    pool = task.aggregation()["mir"]
    one, other = ({"value": 1.5, "measurement": name, "n_samples": 2} for name in "ab")
    assert pool([one, one]) == 1.5
    assert pool([one, other]) is None
    assert pool([one]) is None


def test_a_task_file_copied_elsewhere_may_fix_its_samples(lmms_eval: Any, offline: Path, tiny_llava: Path) -> None:
    (offline / "mine").mkdir()
    (offline / "mine" / "mine.yaml").write_text(
        "task: mine\nclass: !function mir_plugin.tasks.lmms_eval.task.MirTask\nsamples: embedded\nn_samples: 2\n"
    )
    manager = lmms_eval.tasks.TaskManager(include_defaults=False, include_path=str(offline / "mine"))
    [task] = lmms_eval.tasks.get_task_dict(["mine"], manager).values()
    assert len(task.test_docs()) == 2


def test_answers_return_in_request_order_with_the_arguments_of_each_request(lmms_eval: Any, offline: Path) -> None:
    from types import SimpleNamespace

    from mir_plugin.tasks.lmms_eval.model import MirModel

    calls: list[tuple[list[str], int]] = []

    class Echo:
        device = "cpu"

        def generate(self, prompts: Any, *, max_new_tokens: int, **_: Any) -> list[str]:
            calls.append(([prompt.text for prompt in prompts], max_new_tokens))
            return [prompt.text.upper() for prompt in prompts]

        def loglikelihood(self, prompts: Any, continuations: Any) -> list[tuple[float, bool]]:
            return [(-float(len(c)), c == "yes") for c in continuations]

    model = MirModel.__new__(MirModel)
    model.__dict__ |= {"adapter": Echo(), "batch_size_per_gpu": 2, "_rank": 0, "task_dict": {"t": {"s": [{}] * 9}}}
    model.cache_hook = SimpleNamespace(add_partial=lambda *_: None)

    def request(i: int, text: str, second: Any) -> Any:
        return SimpleNamespace(args=(text, second, lambda doc: [], i, "t", "s"), task_name="t")

    texts = ["a", "bbb", "cc", "dddd", "e"]
    requests = [request(i, text, {"max_new_tokens": 1 + i % 2}) for i, text in enumerate(texts)]
    assert model.generate_until(requests) == [text.upper() for text in texts]
    assert calls == [(["cc", "a"], 1), (["e"], 1), (["dddd", "bbb"], 2)]
    scored = model.loglikelihood([request(0, "q", "yes"), request(1, "long q", lambda doc: "no")])
    assert scored == [(3.0, True), (2.0, False)]
