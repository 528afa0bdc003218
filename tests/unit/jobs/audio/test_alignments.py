"""Phone times in the forms in which aligners and corpora give them."""

from __future__ import annotations

from pathlib import Path

import pytest
from praatio import textgrid

from jobs.audio.alignments import Alignments, Phone, ctm, lab, label_of, phn, praat
from jobs.audio.roots import Root
from orchestrator.errors import DataError

SAID = [Phone(0.0, 0.25, ""), Phone(0.25, 0.5, "AH"), Phone(0.5, 0.75, "t")]


def grid(folder: Path, name: str, form: str, tier: str = "phones") -> Path:
    """A TextGrid as Praat writes it."""
    made, path = textgrid.Textgrid(), folder / f"{name}.TextGrid"
    words = [(0.25, 0.75, "utt")]
    phones = [(p.start_s, p.end_s, "AH1" if p.label == "AH" else p.label) for p in SAID]
    made.addTier(textgrid.IntervalTier("words", words, 0, 0.75))
    made.addTier(textgrid.IntervalTier(tier, phones, 0, 0.75))
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save(str(path), form, includeBlankSpaces=True)
    return path


@pytest.mark.parametrize("form", ["short_textgrid", "long_textgrid"])
@pytest.mark.parametrize("tier", ["phones", "speaker 1 - phones", "MAU"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_textgrids(tmp_path: Path, form: str, tier: str, encoding: str) -> None:
    path = grid(tmp_path, "a", form, tier)
    path.write_text(path.read_text(), encoding=encoding)
    assert phones_of(Alignments(Root(tmp_path).tree()), "speech/a") == SAID


def test_a_textgrid_without_phones_says_what_it_has(tmp_path: Path) -> None:
    path = grid(tmp_path, "a", "short_textgrid", "sounds")
    with pytest.raises(DataError, match=r"a\.TextGrid: no tiers of phones .*\(words, sounds\)"):
        praat(path.read_text(), path.name)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_textgrid_cut_short_is_named(tmp_path: Path, share: float) -> None:
    text = grid(tmp_path, "a", "long_textgrid").read_text()
    with pytest.raises(DataError, match=r"a\.TextGrid"):
        praat(text[: int(len(text) * share)], "a.TextGrid")


def test_other_forms_say_the_same() -> None:
    assert phn("0 4000 h#\n4000 8000 AH\n8000 12000 t\n", "a.PHN") == SAID
    assert lab("0 2500000 sil\n2500000 5000000 AH0\n5000000 7500000 t\n", "a.lab") == SAID
    assert lab("signal a\nnfields 1\n#\n 0.25 26 pau\n 0.5 26 AH\n 0.75 26 t\n", "a.lab") == SAID
    of_ctm = "a 1 0.00 0.25 SIL\na 1 0.25 0.25 AH1_B 0.9\na 1 0.50 0.25 t_E\nb 1 0 1 x\n"
    wanted = [("a",), ("b",)]
    found = ctm(of_ctm.splitlines(), "all.ctm", wanted)
    assert found == {("a",): SAID, ("b",): [Phone(0.0, 1.0, "x")]}


def read_ctm(text: str, path: str) -> None:
    ctm(text.splitlines(), path, [("a",)])


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (phn, "0 4000 h#\n4000 x AH\n"),
        (lab, "0 2500000 sil\n2500000\n"),
        (lab, "#\n0.25 26 pau\nAH 26 0.5\n"),
        (read_ctm, "a 1 0.00 0.25 SIL\na 1 0.25\n"),
    ],
)
def test_a_line_that_is_none_is_named(read: object, text: str) -> None:
    with pytest.raises(DataError, match=r"a file:[23]: not `.*`; correct the line"):
        list(read(text, "a file") or ())  # type: ignore[operator]


def test_labels() -> None:
    written = ["AH0", "ah0", "AE1_B", "SIL", "spn", "<eps>", "h#", "ɔː", "t_h", "p", "[NOISE]"]
    said = [label_of(w) for w in written]
    assert said == ["AH", "ah0", "AE", "", "", "", "", "ɔː", "t_h", "p", ""]


def test_a_pause_written_as_a_number_sign_is_no_header() -> None:
    assert lab("0 2500000 #\n2500000 5000000 AH0\n5000000 7500000 t\n", "a.lab") == SAID


def phones_of(found: Alignments, recording: str) -> list[Phone]:
    name = found.name_of(recording)
    assert name is not None, recording
    return found.phones([name])[name]


def test_a_file_is_of_the_recording_whose_folders_it_has(tmp_path: Path) -> None:
    for speaker, phone in (("fcjf0", "a"), ("mdac0", "b")):
        (tmp_path / "dr1" / speaker).mkdir(parents=True)
        (tmp_path / "dr1" / speaker / "SA1.PHN").write_text(f"0 16000 {phone}\n")
    found = Alignments(Root(tmp_path).tree())
    assert phones_of(found, "timit/train/dr1/mdac0/SA1") == [Phone(0.0, 1.0, "b")]
    assert phones_of(found, "timit/mdac0/SA1") == [Phone(0.0, 1.0, "b")]
    # Nobody has said when its phones are.
    for other in ("timit/train/dr1/mdac0/SA2", "timit/train/dr1/faks0/SA1", "timit/x/SA1"):
        assert found.name_of(other) is None, other
    assert len(found) == 2
    with pytest.raises(DataError, match=r"fcjf0/SA1.PHN and .*mdac0/SA1.PHN are both"):
        found.name_of("timit/SA1")


def test_a_transcript_beside_a_textgrid_is_passed_over(tmp_path: Path) -> None:
    grid(tmp_path, "a", "short_textgrid")
    (tmp_path / "a.lab").write_text("what was said\n")
    assert phones_of(Alignments(Root(tmp_path).tree()), "speech/a") == SAID


def test_one_file_may_have_many_recordings(tmp_path: Path) -> None:
    (tmp_path / "all.ctm").write_text(";; one\n84-1 1 0 1 x\n84-2 A 0 1 y\n84-2 B 0 1 z\n")
    found = Alignments(Root(tmp_path).tree())
    assert phones_of(found, "libri/84-1") == [Phone(0.0, 1.0, "x")]
    assert phones_of(found, "libri/84-2#0") == [Phone(0.0, 1.0, "y")]
    assert phones_of(found, "libri/84-2#1") == [Phone(0.0, 1.0, "z")]


def test_phones_that_overlap_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.PHN").write_text("0 16000 x\n8000 24000 y\n")
    with pytest.raises(DataError, match=r"a\.PHN: y from 0\.5 to 1\.5 s overlaps"):
        phones_of(Alignments(Root(tmp_path).tree()), "s/a")


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    with pytest.raises(DataError, match="no TextGrid"):
        Alignments(Root(tmp_path).tree())


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.PHN").write_bytes(b"0 1 \xff\xfe\xfd")
    with pytest.raises(DataError, match=r"a\.PHN: is no text"):
        phones_of(Alignments(Root(tmp_path).tree()), "s/a")
