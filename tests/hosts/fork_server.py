"""One process imports a host, which takes up to a minute; each model class is measured in a fork of it.

What a class changes in torch or transformers does not reach the next one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TESTS = Path(__file__).parents[1]
N_SAMPLES = 3
WIDTH = 16  # of all tiny models


@dataclass(frozen=True)
class ModelClass:
    """A model class of a host, and what it loads.

    Attributes:
        name: by which the host knows it.
        tiny: of ``tiny_host_models.BUILDERS``.
        arguments: further ones for the class.
        simple: lmms-eval's simple class in place of its chat class.
        folder: name of the checkpoint's folder, by which some classes choose an architecture.
        refused: what the message has to say, where the class must not be measured.
    """

    name: str
    tiny: str
    arguments: str = ""
    simple: bool = False
    folder: str = ""
    refused: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """For test ids and file names."""
        return "-".join(filter(None, (self.name, "simple" if self.simple else "", self.tiny, self.folder)))

    def checkpoint(self, out_dir: Path) -> Path:
        """Write the tiny checkpoint where this class is to find it."""
        from hosts.tiny_host_models import save_checkpoint

        return save_checkpoint(self.tiny, out_dir / self.label / (self.folder or self.tiny))


def measured_in_forks(classes: Sequence[ModelClass], measured: Callable[[ModelClass, Path], dict[str, Any]]) -> None:
    """Write ``LABEL.json`` for every class into the folder that the command line names: what it gave, or its error."""
    out_dir = Path(sys.argv[1])
    for case in classes:
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            continue
        try:
            found = measured(case, case.checkpoint(out_dir))
        except BaseException as error:  # whatever it is, the test shows it
            found = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        (out_dir / f"{case.label}.json").write_text(json.dumps(found))
        os._exit(0)


def both_ways(host_class: type, result: Any, independent: list[float]) -> dict[str, Any]:
    """What the host's run gave and what numpy gives, for ``MirResult`` as a dictionary."""
    return {
        "class": f"{host_class.__module__}.{host_class.__name__}",
        "mir": result["mir"],
        "layers": [layer["distance"] for layer in result["layers"]],
        "independent_mir": float(np.log10(sum(independent))),
        "independent_layers": independent,
        "n_vision_tokens": result["layers"][0]["n_vision_tokens"],
    }


def results_of(script: str, classes: Sequence[ModelClass], folder: Path) -> dict[str, dict[str, Any]]:
    """Run a script that calls ``measured_in_forks``; what each class gave, by its label."""
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "MIR_SAMPLES": "embedded",
        "MIR_N_SAMPLES": str(N_SAMPLES),
    }
    command = [sys.executable, str(TESTS / "hosts" / script), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return {case.label: json.loads((folder / f"{case.label}.json").read_text()) for case in classes}


def require_equal(found: dict[str, Any]) -> None:
    """The host's MIR is that of the module's own hidden states."""
    import pytest

    assert "error" not in found, found["traceback"]
    assert found["n_vision_tokens"] > 0
    # One sample a pass, so both read the same hidden states, and compute in float64 from there. With fewer vision
    # tokens than dimensions the covariance has eigenvalues that are rounding noise, of which both take square roots.
    tolerance = 1e-9 if found["n_vision_tokens"] > WIDTH else 1e-7
    assert found["layers"] == pytest.approx(found["independent_layers"], rel=tolerance)
    assert found["mir"] == pytest.approx(found["independent_mir"], abs=tolerance)
