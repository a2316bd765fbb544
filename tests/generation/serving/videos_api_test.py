"""The videos API without HTTP: what it accepts, how it describes jobs, and how it names what is wrong."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from tests.generation import cascades
from tests.generation.sampling_run_test import _Cascade
from walt_t5x.files import storage
from walt_t5x.files.store_errors import CannotWrite
from walt_t5x.generation.sample_folder import SampleFolder
from walt_t5x.generation.serving.clip_maker import ClipMaker
from walt_t5x.generation.serving.job_queue import JobQueue
from walt_t5x.generation.serving.videos_api import ApiError, VideosApi, form_fields

CONFIG = cascades.config(Path("/nowhere"))
# 17 frames at 8 per second, and 12 more with each extension.
FIRST, SECOND = "2.125", "3.625"


class PlainCascade(_Cascade):
  """Clips without a model, up to a stage."""

  def run(self, batches, *, stages, progress):
    names = ["base", "sr1"][:stages]
    for samples in super().run(batches, progress=progress):
      for sample in samples:
        vars(sample)["videos"] = {name: sample.videos[name] for name in names}
      yield samples


def make_api(folder, *, config=CONFIG, max_waiting=100, cascade=None):
  samples = SampleFolder(folder)
  maker = ClipMaker(cascade or PlainCascade(), config, samples, fps=8.0)
  queue = JobQueue(maker, samples, batch_size=4, max_waiting=max_waiting)
  return VideosApi(maker, queue, samples, model="walt")


def picture():
  file = io.BytesIO()
  Image.new("RGB", (16, 16), "red").save(file, format="PNG")
  return file.getvalue()


def finish(api, *ids):
  api._queue.start()
  for id in ids:
    list(api._queue.watch(api._queue.find(id)))


@pytest.fixture
def api(tmp_path):
  return make_api(tmp_path)


def test_a_video_has_the_fields_of_the_api_from_creation_to_completion(api):
  made = api.create({"prompt": " a red square ", "model": "walt", "size": "32x32", "seed": 7})
  assert made == {
    "id": made["id"],
    "object": "video",
    "model": "walt",
    "status": "queued",
    "progress": 0,
    "created_at": made["created_at"],
    "completed_at": None,
    "expires_at": None,
    "prompt": "a red square",
    "seconds": FIRST,
    "size": "32x32",
    "error": None,
    "remixed_from_video_id": None,
    "seed": 7,
    "stage": "sr1",
    "extensions": 0,
  }
  assert isinstance(made["created_at"], int)
  with pytest.raises(ApiError, match="the video is queued, expected completed") as early:
    api.content(made["id"], {})
  assert early.value.status == 409
  finish(api, made["id"])
  done = api.retrieve(made["id"])
  changed = {"status": "completed", "progress": 100, "completed_at": done["completed_at"]}
  assert done == made | changed and isinstance(done["completed_at"], int)
  assert api.content(made["id"], {}).name == "00000_sr1.mp4"
  assert api.content(made["id"], {"variant": "base"}).read_bytes()[4:8] == b"ftyp"
  assert api.delete(made["id"]) == {"id": made["id"], "object": "video.deleted", "deleted": True}
  for call in (api.retrieve, api.delete, lambda id: api.content(id, {})):
    with pytest.raises(ApiError, match="no video") as gone:
      call(made["id"])
    assert gone.value.status == 404


@pytest.mark.parametrize(
  ("fields", "found"),
  [
    ({}, ("sr1", "32x32", FIRST, 0)),
    ({"size": "16x16"}, ("base", "16x16", FIRST, 0)),
    ({"stage": "base"}, ("base", "16x16", FIRST, 0)),
    ({"seconds": "3.625"}, ("sr1", "32x32", SECOND, 1)),
    ({"seconds": 3.6}, ("sr1", "32x32", SECOND, 1)),
    ({"seconds": "2.125", "extensions": 0}, ("sr1", "32x32", FIRST, 0)),
    ({"extensions": 1, "stage": "base", "size": "16x16"}, ("base", "16x16", SECOND, 1)),
    ({"size": None, "seconds": None, "input_reference": None}, ("sr1", "32x32", FIRST, 0)),
  ],
)
def test_size_and_seconds_choose_the_stage_and_the_extensions(api, fields, found):
  made = api.create({"prompt": "a"} | fields)
  assert tuple(made[name] for name in ("stage", "size", "seconds", "extensions")) == found


@pytest.mark.parametrize(
  ("fields", "param", "message"),
  [
    ({"prompt": None}, "prompt", "got no prompt"),
    ({"prompt": ["a"]}, "prompt", "got a list, expected text"),
    ({"prompt": "a" * 10**6}, "prompt", "got 1,000,000 characters, expected at most 2,000"),
    ({"sed": 1}, "sed", "unknown field, expected seed"),
    ({"x" * 10**6: 1}, "x" * 40, "unknown field, expected one of model, prompt"),
    ({"seed": -1}, "seed", "got -1, expected an integer from 0 to 4,294,967,295"),
    ({"seed": "7"}, "seed", "got '7', expected an integer"),
    ({"seed": True}, "seed", "got True"),
    ({"seed": 1.5}, "seed", "got 1.5"),
    ({"extensions": -1}, "extensions", "got -1"),
    ({"extensions": {}}, "extensions", "got {}"),
    ({"stage": "sr9"}, "stage", r"expected one of \['base', 'sr1'\]"),
    ({"stage": ["base"]}, "stage", "expected one of"),
    ({"size": "720x1280"}, "size", r"expected one of \['16x16', '32x32'\]"),
    ({"size": 32}, "size", "expected one of"),
    ({"size": "16x16", "stage": "sr1"}, "size", "got '16x16', expected 32x32"),
    ({"seconds": "4"}, "seconds", "expected one of \\['2.125', '3.625', '5.125'"),
    ({"seconds": "nan"}, "seconds", "got 'nan'"),
    ({"seconds": [4]}, "seconds", "expected one of"),
    ({"seconds": 10**400}, "seconds", "expected one of"),
    ({"seconds": FIRST, "extensions": 1}, "seconds", r"expected one of \['3.625'\]"),
    ({"seconds": FIRST, "extensions": -1}, "seconds", r"expected one of \[\]"),
    ({"input_reference": "a.png"}, "input_reference", "no address is fetched"),
    ({"input_reference": {"image_url": "http://x/y"}}, "input_reference", "no address is fetched"),
    ({"input_reference": {"file_id": "f"}}, "input_reference", "expected an uploaded file"),
    (
      {"input_reference": {"image_url": "data:image/png;base64,?"}},
      "input_reference",
      "is not valid base64",
    ),
    (
      {"input_reference": {"image_url": "data:image/png;base64,AAAA"}},
      "input_reference",
      "cannot be read as an image",
    ),
  ],
)
def test_a_wrong_field_is_an_error_with_its_name(api, tmp_path, fields, param, message):
  with pytest.raises(ApiError, match=message) as raised:
    api.create({"prompt": "a"} | fields)
  assert (raised.value.status, raised.value.param) == (400, param)
  body = raised.value.body()["error"]
  assert set(body) == {"message", "type", "param", "code"} and len(body["message"]) < 400
  assert body["type"] == "invalid_request_error"
  assert not list(tmp_path.iterdir())


def test_another_model_does_not_exist(api):
  with pytest.raises(ApiError, match="got 'sora-2', expected 'walt'") as raised:
    api.create({"prompt": "a", "model": "sora-2"})
  assert (raised.value.status, raised.value.code) == (404, "model_not_found")


def test_an_image_comes_as_a_file_or_in_the_object(api, tmp_path):
  encoded = "data:image/png;base64," + base64.b64encode(picture()).decode()
  as_file = api.create({"prompt": "a"}, image=picture())
  in_object = api.create({"prompt": "a", "input_reference": {"image_url": encoded}})
  for made in (as_file, in_object):
    assert (tmp_path / "jobs" / f"{made['id']}.image").read_bytes() == picture()


def test_a_form_has_numbers_as_text():
  form = {"prompt": "12", "seed": "7", "extensions": "-1", "seconds": "4"}
  assert form_fields(form) == {"prompt": "12", "seed": 7, "extensions": -1, "seconds": "4"}
  for text in ("1.5", "x", "1" * 5000, ""):
    assert form_fields({"seed": text}) == {"seed": text}


def test_the_list_has_pages_in_both_orders(api):
  ids = [api.create({"prompt": "a"})["id"] for _ in range(5)]
  newest = api.list({"limit": "2"})
  assert [one["id"] for one in newest["data"]] == [ids[4], ids[3]]
  assert (newest["object"], newest["first_id"], newest["last_id"]) == ("list", ids[4], ids[3])
  assert newest["has_more"] is True
  rest = api.list({"after": newest["last_id"]})
  assert [one["id"] for one in rest["data"]] == [ids[2], ids[1], ids[0]]
  assert rest["has_more"] is False
  oldest = api.list({"order": "asc", "limit": "1", "after": ids[0]})
  assert [one["id"] for one in oldest["data"]] == [ids[1]]
  assert api.list({"after": ids[0]})["data"] == []


@pytest.mark.parametrize(
  ("query", "status"),
  [
    ({"limit": "0"}, 400),
    ({"limit": "101"}, 400),
    ({"limit": "-1"}, 400),
    ({"limit": "9" * 5000}, 400),
    ({"limit": "x"}, 400),
    ({"order": "up"}, 400),
    ({"after": "../../etc/passwd"}, 404),
  ],
)
def test_a_wrong_query_is_rejected(api, query, status):
  with pytest.raises(ApiError) as raised:
    api.list(query)
  assert raised.value.status == status and len(str(raised.value)) < 200


def test_variants_of_a_clip_are_its_stages(api):
  made = api.create({"prompt": "a", "stage": "base"})["id"]
  finish(api, made)
  for variant in ("sr1", "thumbnail", "../../x"):
    with pytest.raises(ApiError, match="expected 'video' or 'base'") as raised:
      api.content(made, {"variant": variant})
    assert raised.value.status == 400


def test_a_full_queue_and_a_full_disk_are_told_apart_from_wrong_requests(tmp_path, monkeypatch):
  api = make_api(tmp_path, max_waiting=1)

  def full(*arguments, **options):
    raise CannotWrite("/secret/path: no room")

  with monkeypatch.context() as patch:
    patch.setattr(storage, "write_json", full)
    with pytest.raises(ApiError, match="the disk is full") as no_room:
      api.create({"prompt": "a"})
  assert no_room.value.status == 503 and "secret" not in str(no_room.value)
  assert no_room.value.body()["error"]["type"] == "server_error"
  api.create({"prompt": "a"})
  with pytest.raises(ApiError, match="1 clips are waiting") as busy:
    api.create({"prompt": "a"})
  assert busy.value.status == 429 and int(busy.value.headers["retry-after"]) >= 1


def test_a_failed_video_says_why(tmp_path):
  class Failing(PlainCascade):
    def run(self, batches, **options):
      raise MemoryError("of the device")

  api = make_api(tmp_path, cascade=Failing())
  made = api.create({"prompt": "a"})["id"]
  finish(api, made)
  found = api.retrieve(made)
  assert (found["status"], found["completed_at"]) == ("failed", None)
  message = "MemoryError: of the device"
  assert found["error"] == {"code": "generation_failed", "message": message}


def test_the_model_lists_what_it_makes(tmp_path):
  (model,) = make_api(tmp_path).models()["data"]
  assert model["sizes"] == {"base": "16x16", "sr1": "32x32"} and len(model["seconds"]) == 8
  config = cascades.config(tmp_path, base=cascades.model(frame_prediction=False))
  (model,) = make_api(tmp_path, config=config).models()["data"]
  assert model["seconds"] == [FIRST]
