"""Written whole or not at all."""

import os

import pytest

from crossmodal import files
from crossmodal.allocator import keep_freed_memory


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    target = tmp_path / "t"
    with pytest.raises(RuntimeError), files.whole_folder(target) as inside:
        (inside / "half").write_text("x")
        raise RuntimeError
    assert not target.exists() and not list(tmp_path.iterdir())
    for text in ("one", "two"):
        with files.whole_folder(target) as inside:
            (inside / text).write_text(text)
            assert not (target / text).exists()
        assert [p.name for p in target.iterdir()] == [text], "what stood there before is replaced, not mixed"
    with pytest.raises(RuntimeError), files.whole_folder(target):
        raise RuntimeError
    assert (target / "two").read_text() == "two"


def test_a_file_is_replaced_in_one_go(tmp_path, monkeypatch):
    files.write_json(tmp_path / "deep" / "x.json", {"ä": 1})
    assert (tmp_path / "deep" / "x.json").read_text(encoding="utf-8") == '{\n  "ä": 1\n}\n'
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        files.write_text(tmp_path / "deep" / "x.json", "new")
    assert "ä" in (tmp_path / "deep" / "x.json").read_text(encoding="utf-8")
    assert len(list((tmp_path / "deep").iterdir())) == 1


def test_the_users_own_allocator_settings_come_first(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    assert keep_freed_memory.__wrapped__() is False
