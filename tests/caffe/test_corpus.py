"""The script that judges a directory of Caffe's files, on nets in the shapes of Caffe's own examples."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

FILES = Path(__file__).with_name("corpus")
SCRIPT = Path(__file__).parents[2] / "scripts/caffe_corpus.py"
SENTENCES = ("goes_on", "words", "next_words")
SHAPES = [
    *("--rows", "3x40x40", "1x20x20", "2x20x20", "4"),
    *(word for name in SENTENCES for word in ("--shape", f"{name}=6x4")),
]

REFUSED = {
    "a_part.prototxt": "part of a net: a bottom that no layer makes",
    "bn_of_a_fork.prototxt": "fork's layer: BN (SegNet, PSPNet and TSN (yjxiong/caffe))",
    "line_with_python_loss.prototxt": "Python layer (not allowed)",
    "regions_end_to_end.prototxt": "fork's layer: ROIPooling (Fast and Faster R-CNN (rbgirshick/caffe-fast-rcnn))",
    "regions_loss.prototxt": "fork's layer: SmoothL1Loss (Fast and Faster R-CNN (rbgirshick/caffe-fast-rcnn) and "
    "SSD (weiliu89/caffe))",
    "segments_train.prototxt": "Python layer (not allowed)",
    "single_shot_deploy.prototxt": "fork's layer: Permute (SSD (weiliu89/caffe))",
    "torn.prototxt": "syntax",
    "unheard_of.prototxt": "layer of an unknown fork: Unheard",
}


@pytest.fixture(scope="module")
def corpus() -> ModuleType:
    spec = importlib.util.spec_from_file_location("caffe_corpus", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "caffe_corpus", module)
        spec.loader.exec_module(module)
    return module


def test_every_net_is_built_or_refused_for_a_reason(corpus: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert corpus.main([str(FILES), *SHAPES]) == 0
    told = capsys.readouterr().out
    assert dict(re.findall(r"^(\S+\.prototxt): (.*)$", told, flags=re.MULTILINE)) == REFUSED
    solvers = sum("solver" in path.name for path in FILES.iterdir()) - 1  # the consolidated one has nets
    assert f"{solvers:5}  no net in the file (solver)\n" in told
    assert "    1  no net in the file (neither net nor solver)\n" in told
    nets = len(list(FILES.iterdir())) - solvers - 1
    built = nets - len(REFUSED)
    assert told.endswith(
        f"{built} of {nets} files with nets are built, {100 * built / nets:.1f} %; 0 unexplained\n"
    )


def test_a_refusal_without_a_kind_is_an_error(
    corpus: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    net = (FILES / "digits_deploy.prototxt").read_text()
    (tmp_path / "deep/net.prototxt").write_text(net)
    assert corpus.main([str(tmp_path)]) == 0
    capsys.readouterr()
    (tmp_path / "deep/net.prototxt").write_text(net.replace("kernel_size: 5", "kernel_size: 50"))
    assert corpus.main([str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "deep/net.prototxt: unexplained\n" in told
    assert told.endswith("0 of 1 files with nets are built, 0.0 %; 1 unexplained\n")
    # A type of Caffe's own that is not built is no fork's.
    (tmp_path / "deep/net.prototxt").write_text(net)
    monkeypatch.delitem(corpus.LAYERS, "Softmax")
    assert corpus.main([str(tmp_path)]) == 1


def test_solvers_say_in_which_states_a_net_is_built(
    corpus: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "captions.prototxt").write_text((FILES / "captions.prototxt").read_text())
    assert corpus.main([str(tmp_path), *SHAPES]) == 0
    assert "captions.prototxt: part of a net" in capsys.readouterr().out
    (tmp_path / "solver.prototxt").write_text((FILES / "captions_solver.prototxt").read_text())
    assert corpus.main([str(tmp_path), *SHAPES]) == 0
    assert "1 of 1 files with nets are built" in capsys.readouterr().out


def test_shapes_and_directories_are_checked(corpus: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["nowhere"], "nowhere is no directory"),
        ([str(FILES), "--rows", "3x0"], "'3x0' is no shape"),
        ([str(FILES), "--shape", "data"], "'' is no shape"),
    ):
        with pytest.raises(SystemExit):
            corpus.main(words)
        assert message in capsys.readouterr().err
