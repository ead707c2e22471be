from pathlib import Path

import pytest

STANDINS = Path(__file__).parents[1] / "golden" / "standins"


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory where lmms-eval finds drawn stand-ins for benchmarks, with caches of its own."""
    for owner in ("Lin-Chen", "lmms-lab-encoder"):
        (tmp_path / owner).symlink_to(STANDINS / owner)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("MIR_SAMPLES", "embedded")
    for name in ("MIR_N_SAMPLES", "MIR_SEED", "WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaVA of the Hugging Face kind, saved with its processor."""
    from adapters.tiny_models import CHATML, llava

    folder = tmp_path_factory.mktemp("tiny") / "tiny-llava"
    tiny = llava()
    tiny.processor.chat_template = CHATML.replace("IMAGE", "<image>")
    tiny.model.save_pretrained(folder)
    tiny.processor.save_pretrained(folder)
    return folder
