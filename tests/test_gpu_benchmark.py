"""benchmarks/gpu.py runs where there is no GPU, too."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).parent.parent / "benchmarks" / "gpu.py"
TINY = [
    "--device", "cpu", "--arch", "test_resnet", "--sz-crop", "32", "--batch-size", "8", "--images", "96", "--seconds", "0.05",
    "--cluster", "200", "16", "4", "--evaluate", "200", "16", "40", "--at-once", "1", "2",
]  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.slow
def test_every_row_is_there():
    """With small sizes on the CPU; what needs a GPU says so. Neither Ray nor MLflow nor Optuna is imported."""
    # On one core: threads that wait for each other take minutes on a busy machine.
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
    code += f"import sys, runpy; sys.argv[1:] = {TINY!r}; sys.path.insert(0, {str(PROGRAM.parent)!r}); "
    code += f"runpy.run_path({str(PROGRAM)!r}, run_name='__main__'); "
    code += "assert not {'ray', 'mlflow', 'optuna'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split("│")[1:-1] for line in done.stdout.splitlines() if line.startswith("│")]
    values = {row[0].strip(): row[1].strip() for row in rows}
    for part in (
        "step, backbone trained",
        "step, backbone frozen",
        "step, of the limit by memory traffic",
        "of a step, until it is launched",
        "epoch from the store, backbone trained",
        "epoch from the store, backbone frozen",
        "pass of the clustering",
        "pass of the evaluation",
        "k-means 200 x 16 x 4, torch",
        "evaluation 200 x 16",
        "1 trial at once, sum",
        "2 trials at once, sum",
    ):
        assert float(values[part].split()[0].replace(",", "")) > 0, part
    for part in (
        "step, batch-norm not folded",
        "step, cudnn.benchmark",
        "step, torch.compile of the backbone",
        "a trial of 0.25 of the GPU asks for 0.5",
    ):
        assert values[part] == "no GPU"
    assert "--gpus-per-trial auto would take" in done.stdout
