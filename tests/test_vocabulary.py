"""Vocabularies of words, and of characters with one for the unknown."""

import collections

import numpy as np
import pytest

from lstm_jax import data


def test_words_are_counted_and_the_rest_is_unknown():
    sentences = [s.split() for s in ("the cat sat", "the dog sat", "a cat <unk>")]
    counts = collections.Counter(word for s in sentences for word in s)
    for least in (1, 2, 3):
        words = data.Vocabulary.of(sentences, least_count=least, unknown="<unk>")
        kept = {word for word, count in counts.items() if count >= least}
        assert words.symbols == ("<unk>", *sorted(kept - {"<unk>"}))
        for sentence in sentences:
            told = words.decode(words.encode(sentence))
            assert told == [w if w in kept else "<unk>" for w in sentence]
    assert words.encode(["never", "seen"]).tolist() == [0, 0]
    assert words.decode([]) == [] and words.encode([]).shape == (0,)


def test_a_character_may_stand_for_the_unknown():
    vocabulary = data.Vocabulary.of("hello", least_count=2, unknown="?")
    assert vocabulary.symbols == "?l"
    assert vocabulary.decode(vocabulary.encode("hello")) == "??ll?"


def test_a_vocabulary_is_made_again_of_what_json_keeps():
    words = data.Vocabulary.of([["b", "a"], ["b"]], unknown="-")
    again = data.Vocabulary(list(words.symbols), words.unknown)
    assert again == words and hash(again) == hash(words)


def test_the_old_name_of_symbols_works_and_says_the_new():
    with pytest.warns(DeprecationWarning, match="symbols") as made:
        old = data.Vocabulary(characters="ab")
    assert old == data.Vocabulary("ab")
    with pytest.warns(DeprecationWarning, match="symbols") as read:
        assert old.characters == "ab"
    assert made[0].filename == read[0].filename == __file__


@pytest.mark.parametrize("unknown", [None, "?"])
def test_characters_may_come_one_by_one(unknown):
    """What can be gone through but once is not gone through twice."""
    vocabulary = data.Vocabulary.of("abc", unknown=unknown)
    expected = vocabulary.encode("cab").tolist()
    for text in ("cab", list("cab"), tuple("cab"), np.array(list("cab")), iter("cab")):
        assert vocabulary.encode(text).tolist() == expected


@pytest.mark.parametrize("unknown", [None, "?"])
@pytest.mark.parametrize(
    "text, error, words",
    [
        (b"abc", TypeError, r"got bytes. .* bytes.decode\(\)"),
        (["ab", "c"], ValueError, "single characters, got 'ab'"),
        ([1, 2], TypeError, "got one of int"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_what_is_no_text_is_not_the_unknown(text, error, words, unknown):
    with pytest.raises(error, match=words):
        data.Vocabulary.of("abc", unknown=unknown).encode(text)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: data.Vocabulary.of(["a b"]), TypeError, r"string.split\(\)"),
        (lambda: data.Vocabulary.of([[1]]), TypeError, "got one of int"),
        (lambda: data.Vocabulary(["a", "a"]), ValueError, "every one once"),
        (lambda: data.Vocabulary(["a"], "b"), ValueError, "one of the symbols"),
        (lambda: data.Vocabulary(), TypeError, "got NoneType"),
        (lambda: data.Vocabulary(["a"]).encode("a"), TypeError, r"string.split\(\)"),
        (lambda: data.Vocabulary(["a"]).encode(["b"]), ValueError, "not in the voc"),
        (
            lambda: data.Vocabulary.of("aab", least_count=2),
            ValueError,
            "unknown: expected a symbol that stands for",
        ),
        (lambda: data.Vocabulary.of("ab", unknown="<unk>"), ValueError, "one charac"),
        (lambda: data.Vocabulary.of([]), ValueError, "text: expected characters or"),
        (lambda: data.Vocabulary.of("ab", least_count=0), ValueError, "least_count"),
    ],
)
def test_what_is_no_vocabulary_is_told(call, error, words):
    with pytest.raises(error, match=words):
        call()
