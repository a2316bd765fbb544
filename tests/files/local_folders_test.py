"""Local copies of folders at addresses: complete, temporary, and gone after the block."""

import tempfile
import uuid

import pytest

from walt_t5x.files import local_folders, storage


@pytest.fixture
def address(tmp_path, monkeypatch):
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
  return f"memory://{uuid.uuid4().hex}/out"


def test_a_copy_has_the_files_and_is_gone_afterwards(address, tmp_path):
  files = {"a": b"1", "b": b"22"}
  for name, content in files.items():
    storage.write(storage.join(address, name), content)
  with local_folders.read_locally(address) as copy:
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == files
    assert copy.is_relative_to(tmp_path)
  with pytest.raises(KeyboardInterrupt), local_folders.read_locally(address):
    raise KeyboardInterrupt
  assert not list(tmp_path.iterdir())


def test_what_is_written_arrives_at_the_end_of_the_block_or_not_at_all(
  address, tmp_path, monkeypatch
):
  uploaded, upload = [], storage.upload
  monkeypatch.setattr(
    storage, "upload", lambda source, path: (uploaded.append(path), upload(source, path))
  )

  def write(folder):
    for name in ("z", "below/b", "last", "a"):
      (folder / name).parent.mkdir(exist_ok=True)
      (folder / name).write_text(name)

  with pytest.raises(KeyboardInterrupt):
    with local_folders.written_locally(address, last="last") as folder:
      write(folder)
      raise KeyboardInterrupt
  assert not uploaded
  with local_folders.written_locally(address, last="last") as folder:
    write(folder)
    assert not uploaded
  assert uploaded[-1] == storage.join(address, "last") and len(uploaded) == 4
  assert storage.read(storage.join(address, "below/b")) == b"below/b"
  assert not list(tmp_path.iterdir())


def test_a_local_folder_is_used_as_it_is(tmp_path):
  for block in (
    local_folders.read_locally,
    lambda path: local_folders.written_locally(path, last=""),
  ):
    with block(tmp_path) as folder:
      assert folder == tmp_path
