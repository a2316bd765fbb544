"""The server answers every request with JSON in the API's shape: complete jobs, hostile bodies, tokens and limits."""

import json
import re
import threading

import pytest

pytest.importorskip("starlette", reason="starlette is not installed: the extra [serve]")
pytest.importorskip("python_multipart", reason="python-multipart is not installed: [serve]")

from tests.generation.serving.asgi_client import form, send, send_form, send_json
from tests.generation.serving.videos_api_test import FIRST, finish, make_api, picture
from walt_t5x.generation.serving.server_app import MAX_BODY, build_app
from walt_t5x.generation.serving.server_metrics import ServerMetrics

TOKEN = "a-secret-that-is-long-enough"


@pytest.fixture
def api(tmp_path):
  return make_api(tmp_path)


def make_app(api, *, host="127.0.0.1", token=None):
  metrics = ServerMetrics()
  metrics.watch(api._queue)
  api._queue._observe = metrics.observe
  return build_app(api, metrics, host=host, token=token)


@pytest.fixture
def app(api):
  return make_app(api)


def check_error(answer, status, message=""):
  """The answer is an error in the shape that the package `openai` reads."""
  assert answer.status == status, answer.body[:300]
  error = answer.json()["error"]
  assert set(error) == {"message", "type", "param", "code"} and len(answer.body) < 2000
  assert re.search(message, error["message"])
  return error


def test_a_video_is_created_watched_listed_downloaded_and_deleted(app, api):
  created = send_json(app, {"prompt": "a", "seed": 3})
  assert created.status == 200 and created.headers["content-type"] == "application/json"
  id = created.json()["id"]
  assert send(app, "GET", f"/v1/videos/{id}").json() == created.json()
  check_error(send(app, "GET", f"/v1/videos/{id}/content"), 409, "queued")
  finish(api, id)
  assert send(app, "GET", "/v1/videos", query="limit=5").json()["data"][0]["status"] == "completed"
  clip = send(app, "GET", f"/v1/videos/{id}/content", query="variant=video")
  assert (clip.status, clip.headers["content-type"]) == (200, "video/mp4")
  assert clip.body[4:8] == b"ftyp" and int(clip.headers["content-length"]) == len(clip.body)
  part = send(app, "GET", f"/v1/videos/{id}/content", headers={"range": "bytes=4-7"})
  assert (part.status, part.body) == (206, b"ftyp")
  assert send(app, "DELETE", f"/v1/videos/{id}").json()["deleted"] is True
  check_error(send(app, "GET", f"/v1/videos/{id}"), 404)
  assert send(app, "GET", "/v1/models").json()["data"][0]["id"] == "walt"


def test_a_form_with_an_image_is_accepted_as_the_client_sends_it(app, api, tmp_path):
  fields = [
    ("prompt", "a"),
    ("model", "walt"),
    ("seconds", FIRST),
    ("size", "32x32"),
    ("seed", "7"),
  ]
  made = send_form(app, fields, [("input_reference", picture())])
  assert made.status == 200 and made.json()["seed"] == 7
  id = made.json()["id"]
  assert (tmp_path / "jobs" / f"{id}.image").read_bytes() == picture()
  finish(api, id)
  assert send(app, "GET", f"/v1/videos/{id}").json()["status"] == "completed"


DEEP = b'{"prompt":' * 20_000
BODY, FORM = form([("prompt", "a")], [("input_reference", b"x" * 3000)])


@pytest.mark.parametrize(
  ("body", "status"),
  [
    (b"", 400),
    (b"{", 400),
    (b"[]", 400),
    (b"null", 400),
    (b'"prompt"', 400),
    (b"\xff\xfe{}", 400),
    (DEEP, 400),
    (b"[" * 100_000, 400),
    (b'{"prompt": "a", "seed": NaN}', 400),
    (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", 400),
    (b'{"prompt": "a", "seed": 1e999}', 400),
    (b'{"prompt": "a\\ud800"}', 400),
    (b'{"prompt": "a", "\\ud800": 1}', 400),
    (b'{"prompt": "a", "seed": "\\ud800"}', 400),
    (b'{"prompt": "' + b"a" * 2**20 + b'"}', 400),
    (b'{"prompt": "a", "stage": "../../etc/passwd"}', 400),
    (b'{"prompt": "a", "id": "video_1"}', 400),
  ],
)
def test_a_hostile_object_is_a_clear_error(app, tmp_path, body, status):
  check_error(send_json(app, body), status)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("body", "headers"),
  [
    (b"", FORM),
    (BODY, {"content-type": "multipart/form-data"}),
    (BODY, {"content-type": "multipart/form-data; boundary=other"}),
    (BODY, {"content-type": "multipart/form-data; boundary="}),
    (BODY[: len(BODY) // 2], FORM),
    (BODY.replace(b'name="prompt"', b"name"), FORM),
    (BODY.replace(b"form-data", b"x"), FORM),
    (BODY, FORM),  # It is not an image.
    (form([("prompt", "a" * 2**20)])[0], FORM),
    (form([("prompt", "a"), ("prompt", "b")])[0], FORM),
    (form([("prompt", "a"), ("seed", "-1")])[0], FORM),
    (form([("prompt", "a"), ("seed", "1e3")])[0], FORM),
    (form([(f"f{i}", "x") for i in range(1000)])[0], FORM),
    (form([], [("prompt", b"a")])[0], FORM),
    (form([("prompt", "a")], [("input_reference", picture())] * 2)[0], FORM),
    (form([("input_reference", "a.png"), ("prompt", "a")])[0], FORM),
  ],
)
def test_a_hostile_form_is_a_clear_error(app, tmp_path, body, headers):
  check_error(send(app, "POST", "/v1/videos", body=body, headers=headers), 400)
  assert not list(tmp_path.iterdir())


def test_other_types_sizes_paths_and_methods_are_clear_errors(app):
  for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
    check_error(send_json(app, {"prompt": "a"}, headers={"content-type": kind}), 415)
  check_error(send_json(app, b"{}", headers={"content-length": str(MAX_BODY + 1)}), 413)
  check_error(send_json(app, b"{}", headers={"content-length": "x"}), 413)
  chunked = {"transfer-encoding": "chunked", "content-length": None}
  check_error(send_json(app, b"{}", headers=chunked), 411)
  for path in ("/v1/videos/..%2f..%2fetc%2fpasswd", "/v1/videos/../../etc/passwd", "/v1/x", "/"):
    check_error(send(app, "GET", path), 404)
  for path in ("/v1/videos/../jobs/lock", "/v1/videos/00000.json", f"/v1/videos/{'x' * 10**5}"):
    check_error(send(app, "GET", path), 404)
  check_error(send(app, "PUT", "/v1/videos"), 405)
  check_error(send(app, "GET", "/v1/videos", query="limit=-1"), 400)


def test_a_client_that_disconnects_leaves_nothing(app, tmp_path):
  body, headers = form([("prompt", "a")])
  for sent in (headers, {"content-type": "application/json"}):
    answer = send(app, "POST", "/v1/videos", body=body[:20], headers=sent, complete=False)
    assert answer.status == 400
  assert not list(tmp_path.iterdir())


def test_pages_of_other_sites_are_rejected(app):
  check_error(send_json(app, {"prompt": "a"}, headers={"host": "evil.example"}), 403)
  check_error(send_json(app, {"prompt": "a"}, headers={"origin": "http://evil.example"}), 403)


def test_only_requests_with_the_token_are_answered(api):
  app = make_app(api, host="0.0.0.0", token=TOKEN)
  wrong = (
    None,
    TOKEN,
    f"Bearer {TOKEN}x",
    f"Bearer {TOKEN[:-1]}",
    "Bearer ",
    f"Basic {TOKEN}",
    "é",
  )
  for given in wrong:
    for method, path in (("POST", "/v1/videos"), ("GET", "/v1/videos"), ("GET", "/metrics")):
      answer = send(app, method, path, headers={"authorization": given})
      assert check_error(answer, 401)["type"] == "authentication_error"
      assert answer.headers["www-authenticate"] == "Bearer" and TOKEN not in answer.body.decode()
  right = {"authorization": f"Bearer {TOKEN}", "host": "box.example"}
  assert send_json(app, {"prompt": "a"}, headers=right).status == 200
  assert send(app, "GET", "/metrics", headers=right).status == 200
  assert send(app, "GET", "/healthz").body == b"ok\n"


def test_a_full_queue_is_a_429_with_the_time_to_wait(tmp_path):
  app = make_app(make_api(tmp_path, max_waiting=1))
  assert send_json(app, {"prompt": "a"}).status == 200
  answer = send_json(app, {"prompt": "a"})
  assert check_error(answer, 429)["code"] == "queue_full"
  assert int(answer.headers["retry-after"]) >= 1


def test_sixteen_clients_get_sixteen_clips_of_full_batches_and_the_metrics_count_them(app, api):
  answers = []

  def ask(seed):
    answers.append(send_json(app, {"prompt": "a", "seed": seed}))

  threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(16)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert "walt_queue_depth 16.0" in send(app, "GET", "/metrics").body.decode()
  finish(api, *(answer.json()["id"] for answer in answers))
  listed = send(app, "GET", "/v1/videos", query="limit=100").json()["data"]
  assert {one["status"] for one in listed} == {"completed"}
  assert sorted(one["seed"] for one in listed) == list(range(16))
  figures = send(app, "GET", "/metrics")
  assert figures.headers["content-type"].startswith("text/plain")
  lines = figures.body.decode().splitlines()
  # Batches of four.
  for line in (
    'walt_jobs{status="completed"} 16.0',
    'walt_jobs{status="queued"} 0.0',
    "walt_queue_depth 0.0",
    'walt_batch_size_bucket{le="2.0"} 0.0',
    'walt_batch_size_bucket{le="4.0"} 4.0',
    "walt_batch_size_sum 16.0",
    'walt_stage_seconds_count{part="sample",stage="base"} 4.0',
    'walt_stage_seconds_sum{part="sample",stage="base"} 2.0',
  ):
    assert line in lines, line


def test_a_bug_is_a_500_without_its_details(app, api, monkeypatch):
  def broken(id):
    raise KeyError("/secret/path")

  monkeypatch.setattr(api, "retrieve", broken)
  sent = []
  # The framework answers, and raises for the log of the server.
  with pytest.raises(KeyError):
    send(app, "GET", "/v1/videos/x", sent=sent)
  body = b"".join(message.get("body", b"") for message in sent)
  assert sent[0]["status"] == 500 and json.loads(body)["error"]["type"] == "server_error"
  assert b"secret" not in body
