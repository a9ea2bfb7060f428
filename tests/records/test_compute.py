"""The cost of a training: what is measured, also where a counter begins anew, and where it is shown."""

from pathlib import Path

from autotimm.records.compute import COMPUTE, Meter, compute_lines
from autotimm.records.manifest import Manifest
from training import small_fit


def rapl(folder: Path, joules: float, name: str = "intel-rapl:0") -> None:
    zone = folder / name
    zone.mkdir(exist_ok=True)
    (zone / "energy_uj").write_text(f"{joules * 1e6:.0f}\n")
    (zone / "max_energy_range_uj").write_text("1000000000\n")


def test_energy_of_processors(tmp_path):
    rapl(tmp_path, 990)
    rapl(tmp_path, 5, "intel-rapl:1")
    rapl(tmp_path, 70, "intel-rapl:0:0")
    meter = Meter(tmp_path)
    rapl(tmp_path, 15)
    rapl(tmp_path, 7, "intel-rapl:1")
    rapl(tmp_path, 90, "intel-rapl:0:0")
    assert meter.read()["cpu_energy_j"] == 27
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("no number")
    assert "cpu_energy_j" not in meter.read()


def test_a_run_says_what_it_has_cost(toy_folder, tmp_path):
    run = small_fit(toy_folder, tmp_path)
    manifest = Manifest.load(run.path / "manifest.json")
    (measured,) = manifest.volatile[COMPUTE]
    assert 0 < measured["wall_s"] < 600
    assert measured["cpu_s"] > 0
    assert measured["peak_memory"] > 2**25
    assert "Wall time" in (run.path / "report.html").read_text()
    assert manifest.problem() is None
    assert run.verify(steps=1).identical


def test_lines_of_a_resumed_run():
    sessions = [{"wall_s": 3600, "cpu_s": 7200, "peak_memory": 10**9, "gpu_energy_j": 3.6e6}, {"wall_s": 1800}]
    assert compute_lines({COMPUTE: sessions}) == [
        ("Wall time", "1.50 h"), ("CPU time", "2.00 h"), ("Peak memory", "1 GB"), ("Energy of the GPUs", "1 kWh"),
        ("Processes one after the other", "2"),
    ]  # fmt: skip


def test_lines_of_what_a_stranger_wrote():
    for said in (None, 3, [], ["x"], [{"wall_s": "x"}]):
        assert compute_lines({COMPUTE: said}) == []
