"""One code for a language, however it is written."""

from __future__ import annotations

import pytest
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from jobs.audio.languages import language_code, language_of_folder


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("en", "en"),
        ("EN", "en"),
        ("en-US", "en"),
        ("en_GB", "en"),
        ("eng", "en"),
        ("eng_Latn", "en"),
        ("deu", "de"),
        ("ger", "de"),
        ("cmn_Hans_CN", "zh"),
        ("nb-NO", "no"),
        ("jw", "jv"),
        ("pt_BR", "pt"),
        ("yue", "yue"),
        ("haw", "haw"),
        ("English", "en"),
        ("English (US)", "en"),
        (" german ", "de"),
        ("Mandarin", "zh"),
        ("Haitian Creole", "ht"),
        ("Klingon", "klingon"),
        ("", ""),
        ("und", ""),
        ("unknown", ""),
    ],
)
def test_languages_are_codes_however_a_corpus_writes_them(said: str, code: str) -> None:
    assert language_code(said) == code


def test_all_that_whisper_knows_has_its_name_and_code() -> None:
    for name, code in TO_LANGUAGE_CODE.items():
        assert language_code(name) == language_code(code)
        assert language_code(language_code(code)) == language_code(code)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("en", "en"),
        ("eng", "en"),
        ("EN_us", "en"),
        ("zh-Hant-TW", "zh"),
        ("es-419", "es"),
        ("German", "de"),
        ("no-speech", "no-speech"),
        ("it is", "it is"),
        ("Books", "Books"),
        ("en.old", "en.old"),
        ("", ""),
    ],
)
def test_a_folder_is_of_a_language_where_its_name_is_one(name: str, code: str) -> None:
    assert language_of_folder(name) == code
