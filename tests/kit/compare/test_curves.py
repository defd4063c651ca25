"""The losses of generators: read from beside their models, drawn, shown on the page."""

from __future__ import annotations

import io

import pytest

import wilcoxon_test
from lungkit.compare import curves
from result_trees import write_counts


def write(folder, part: str, rows: int, *, held: bool = True):
    path = folder / part / curves.FILE
    path.parent.mkdir(parents=True)
    lines = [f"{10 * row},{1 / row:.3g}" + (f",{2 / row:.3g}" if row % 4 == 0 else ",") * held
             for row in range(1, rows + 1)]
    path.write_text("\n".join(["step,train_loss" + ",val_loss" * held, *lines, ""]))
    return path


def test_both_losses_are_read_where_there_are_both(tmp_path):
    train, held = curves.read(write(tmp_path, "a", 8))
    assert train[:2] == [(10, 1.0), (20, 0.5)] and len(train) == 8
    assert held == [(40, 0.5), (80, 0.25)]
    assert curves.read(write(tmp_path, "b", 8, held=False))[1] == []


def test_trainings_of_the_arms_compared_are_shown_in_their_order(tmp_path):
    for arm, part, rows in (("gan", "unet", 12), ("gan", "vae", 12), ("gan", "short", 9),
                            ("other", "unet", 12), ("an", "x", 12)):
        write(tmp_path / arm, part, rows)
    assert list(curves.of_arms(tmp_path, ["real", "gan", "an"])) == [
        "gan, unet", "gan, vae", "an, x"]
    assert list(curves.of_model(tmp_path / "gan")) == ["unet", "vae"]
    assert curves.of_arms(None, ["gan"]) == {}


@pytest.mark.parametrize(("number", "size"), [(1, (442, 338)), (5, (1612, 637))])
def test_every_training_has_its_panel(number, size, tmp_path):
    from PIL import Image

    found = {str(place): curves.read(write(tmp_path, str(place), 12, held=place % 2 == 0))
             for place in range(number)}
    image = Image.open(io.BytesIO(curves.png(found))).convert("L")
    assert image.size == size
    if number == 5:  # the second row has one
        assert image.crop((420, 330, *size)).getextrema() == (255, 255)


def test_a_panel_marks_where_what_was_held_out_was_best_known(monkeypatch):
    from matplotlib.figure import Figure

    shown = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **more: shown.append(figure))
    curves.png({"unet": ([(10 * row, 1.0) for row in range(1, 21)],
                         [(50, 0.4), (100, 0.2), (150, 0.3)])})
    [axes] = shown[0].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "learnt from", "held out", "kept: step 100"]
    assert axes.lines[-1].get_xydata().tolist() == [[100, 0.2]]


def test_the_page_shows_them_and_is_made_anew_where_one_changes(tmp_path, capsys):
    tree = write_counts(tmp_path / "r", {"real": [50, 52, 54], "gan": [48, 50, 53]})
    path = write(tmp_path / "models/gan", "unet", 12)
    command = [str(tree), "--output", str(tmp_path / "c"), "--models", str(tmp_path / "models")]
    assert wilcoxon_test.main(command) == 0
    assert "How the generators learnt" in (tmp_path / "c/report.html").read_text()
    assert (tmp_path / "c/loss.png").read_bytes().startswith(b"\x89PNG")
    assert wilcoxon_test.main(command) == 0 and "already complete" in capsys.readouterr().out
    path.unlink()
    assert wilcoxon_test.main(command) == 0
    assert "How the generators learnt" not in (tmp_path / "c/report.html").read_text()
    assert not (tmp_path / "c/loss.png").exists()
