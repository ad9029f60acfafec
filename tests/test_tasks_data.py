"""What the tasks in examples/ read, and what they refuse."""

import csv
import re

import numpy as np
import pytest

from tests.tasks import functions, run_here


def test_series_of_a_ts_file_have_their_lengths(tmp_path):
    path = tmp_path / "X_TRAIN.ts"
    path.write_text("#of\n@equalLength false\n@DATA\n1,2,3:4,5,6:a b\n\n7:8:c\n")
    series, labels = functions("classify")["read"](path)
    assert [one.tolist() for one in series] == [[[1, 4], [2, 5], [3, 6]], [[7, 8]]]
    assert labels == ["a b", "c"]


def test_sentences_of_a_file_of_columns(tmp_path):
    path = tmp_path / "x.conll"
    path.write_text(
        "-DOCSTART- -X- O O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n"
        "Peter N x I-PER\n"
    )
    assert functions("tag")["read"](path) == [
        (("EU", "rejects"), ("B-ORG", "O")),
        (("Peter",), ("I-PER",)),
    ]


@pytest.mark.parametrize("head", ["", "date,load,heat\n"])
def test_columns_of_a_csv_that_have_numbers(head, tmp_path):
    path = tmp_path / "x.csv"
    rows = [("2020-01-01", 1.5, -2e3), ("2020-01-02", 2, 0.25)]
    with path.open("w", newline="") as file:
        file.write(head)
        csv.writer(file).writerows(rows)
    values = functions("forecast")["read"](path)
    np.testing.assert_array_equal(values, [[1.5, -2000], [2, 0.25]])


def test_windows_of_the_test_part_forecast_nothing_of_the_others():
    """The scale is that of training; a target is in one part alone."""
    module = functions("forecast")
    series = np.arange(1000.0)[:, None]
    config = module["Config"](length=48, horizon=12)
    parts, scaler = module["split"](series, config)
    np.testing.assert_allclose(scaler.mean, series[:700].mean(0))
    targets = [np.unique(np.rint(scaler.unscale(truth))) for _, _, truth in parts]
    assert targets[0].max() < 700 <= targets[1].min()
    assert targets[1].max() < 850 <= targets[2].min() and targets[2].max() == 999
    seen, naive, truth = parts[2]
    np.testing.assert_allclose(naive[:, 0], seen[:, -24], rtol=1e-6)


def test_sums_that_are_held_out_are_never_trained_on():
    module = functions("add")
    held_out = module["HELD_OUT"]
    assert (held_out == held_out.T).all() and 0.04 < held_out.mean() < 0.06
    trained, tested = (module["pairs"](3, 500, which) for which in (False, True))
    assert not held_out[tuple(trained.T)].any() and held_out[tuple(tested.T)].all()
    sums, lengths, answers, ends = module["encode"](np.array([[12, 999], [0, 7]]))
    decode = module["VOCABULARY"].decode
    assert decode(sums[0, : lengths[0]]) == "12+999"
    assert decode(answers[0, : ends[0]]) == "\n1101\n"
    assert decode(answers[1, : ends[1]]) == "\n7\n"


REFUSED = {
    "classify": ("1,?:2,3:a\n", "line 1: could not convert"),
    "tag": ("word X\n", "line 1: expected a word and B-, I- or O."),
    "forecast": ("1,2\n3,\n", "line 2: expected 2 numbers."),
}


@pytest.mark.parametrize("task", REFUSED)
def test_bad_data_are_refused_in_one_line(task, tmp_path):
    text, words = REFUSED[task]
    path = tmp_path / "X_TRAIN.ts"
    path.write_text(text)
    given = tmp_path if task == "classify" else path
    for args, expected in (
        (("--data", given), words),
        (("--data", tmp_path / "none"), "none"),
    ):
        status, _ = run_here(task, *args, "--out", tmp_path / "out")
        assert status.startswith(f"{task}: ") and expected in status
        assert "\n" not in status


@pytest.mark.parametrize(
    "text, words",
    [
        ("date;load\n2020-01-01;1,5\n2020-01-02;2,5\n", "got '2020-01-01;1,5'"),
        ("2020-01-01;1,5\n", "expected 1.5,2 and not 1,5;2"),
        ("a;1.5;2.5\n", "got 'a;1.5;2.5'"),
        ("date\t1.5\n", "got 'date"),
        ('x,y\n"1,5",2\n"2,5",3\n', "got '\"1,5\",2'"),
        ('x,y\n"1,500,000",2\n', "got '\"1,500,000\",2'"),
    ],
)
def test_a_csv_of_another_kind_is_not_read_as_other_numbers(text, words, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(words)):
        functions("forecast")["read"](path)


def test_blank_lines_of_a_csv_hold_nothing_and_lines_are_counted_as_they_lie(tmp_path):
    read, path = functions("forecast")["read"], tmp_path / "x.csv"
    path.write_bytes("\ufeff\nday; or week,load\n\na,1\nb,2\n\n".encode())
    np.testing.assert_array_equal(read(path), [[1], [2]])
    path.write_text("\nday,load\n\na,1\nb,\n")
    with pytest.raises(ValueError, match="line 5: expected 1 numbers"):
        read(path)


def test_classes_of_any_encoding_stay_apart(tmp_path):
    path = tmp_path / "X_TRAIN.ts"
    read = functions("classify")["read"]
    path.write_bytes("#é\n1,2:ä\n1,2:ö\n".encode("latin-1"))
    assert len(set(read(path)[1])) == 2
    path.write_bytes("\ufeff1,2:ä\n1,2:ö\n".encode())
    series, labels = read(path)
    assert labels == ["ä", "ö"] and series[0].tolist() == [[1], [2]]


def test_ids_are_no_words_and_comments_no_sentences(tmp_path):
    read, path = functions("tag")["read"], tmp_path / "x.conll"
    path.write_text("# text = a b\n# id 1\na O\nb B-X\n\n# NN O\n1 O\n")
    assert read(path) == [(("a", "b"), ("O", "B-X")), (("#", "1"), ("O", "O"))]
    path.write_text("1 EU B-ORG\n2 rejects O\n\n1 Peter B-PER\n")
    with pytest.raises(ValueError, match="words first, no numbers"):
        read(path)


OF_TRAIN = {
    "classify": [
        ("1,nan:a\n1,2:b\n", "line 1: expected finite numbers"),
        ("1,2:3:a\n", "line 1: "),
    ],
    "tag": [
        ("a O\n", "expected 2 or more"),
        ("\n", "expected 2 or more"),
    ],
}


@pytest.mark.parametrize("task", OF_TRAIN)
def test_data_that_do_not_do_are_refused_before_training(task, tmp_path):
    for number, (text, words) in enumerate(OF_TRAIN[task]):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "X_TRAIN.ts"
        path.write_text(text)
        given = folder if task == "classify" else path
        status, _ = run_here(task, "--data", given, "--out", folder / "out")
        assert status.startswith(f"{task}: ") and words in status
        assert not (folder / "out").exists()


@pytest.mark.parametrize(
    "test, words",
    [
        ("1,nan:a\n", "X_TEST.ts, line 1: expected finite numbers"),
        ("1,2:a\n", "values: expected shape"),
    ],
)
def test_series_to_test_with_are_like_those_of_training(test, words, tmp_path):
    (tmp_path / "X_TRAIN.ts").write_text("1,2:3,4:a\n1,3:2,4:b\n")
    (tmp_path / "X_TEST.ts").write_text(test)
    status, _ = run_here("classify", "--data", tmp_path, "--out", tmp_path / "out")
    assert words in status and not (tmp_path / "out").exists()
