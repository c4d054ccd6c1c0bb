"""Weights are found, downloaded in one piece or several, checked, converted once, or asked for in one line."""

import hashlib
import http.server
import threading

import numpy as np
import pytest
from safetensors.numpy import load_file

from diffusion_jax.metrics import weights

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "diffusion_jax" / "weights"


@pytest.fixture
def server():
    """A server of CONTENT that notes the ranges asked for; `cut` bytes and no more are sent."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers["Range"]
            httpd.asked.append(asked)
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and httpd.resumes else 0
            if start >= len(CONTENT):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            self.wfile.write(CONTENT[start : httpd.cut])

        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.asked, httpd.cut, httpd.resumes = [], None, True
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def source(server, sha256=SHA256):
    return weights.Source("toy", "toy.pth", f"http://127.0.0.1:{server.server_port}/toy.pth", sha256)


def test_a_download_is_checked_shown_and_kept(server, cache, capsys):
    path = weights.find(source(server), None)
    assert path == cache / "toy.pth" and path.read_bytes() == CONTENT
    assert "toy.pth: 100%" in capsys.readouterr().err
    assert weights.find(source(server), None) == path
    assert server.asked == [None], "downloaded once"
    assert sorted(p.name for p in cache.iterdir()) == ["toy.pth", "toy.pth.lock"]


@pytest.mark.parametrize("resumes", [True, False])
def test_a_download_that_was_cut_off_goes_on(server, cache, resumes):
    server.cut, server.resumes = 100_000, resumes
    with pytest.raises(ValueError, match="stopped after 100000 of 300000 bytes") as caught:
        weights.find(source(server), None)
    assert "\n" not in str(caught.value) and not (cache / "toy.pth").exists()
    server.cut = None
    assert weights.find(source(server), None).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-"]


def test_a_part_that_is_whole_is_taken(server, cache):
    cache.mkdir(parents=True)
    (cache / "toy.pth.part").write_bytes(CONTENT)
    assert weights.find(source(server), None).read_bytes() == CONTENT


def test_a_download_with_another_hash_is_thrown_away(server, cache):
    with pytest.raises(ValueError, match="was thrown away"):
        weights.find(source(server, "0" * 64), None)
    assert not list(cache.glob("toy.pth*[!k]"))
    assert weights.find(source(server), None).read_bytes() == CONTENT


def test_a_download_whose_hash_is_not_known_says_what_it_is(server):
    with pytest.warns(UserWarning, match=f"nobody has published its SHA-256; it is {SHA256}"):
        weights.find(source(server, None), None)


def test_without_a_network_one_line_says_which_file_to_put_where(cache):
    nowhere = weights.Source("toy", "toy.pth", "http://127.0.0.1:1/toy.pth", SHA256)
    with pytest.raises(ValueError) as caught:
        weights.find(nowhere, None)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("put toy.pth", nowhere.url, SHA256, str(cache / "toy.pth"), "download failed"):
        assert part in message
    with pytest.raises(ValueError, match=r"own.pth: no such file; it must hold the weights of toy"):
        weights.find(nowhere, "own.pth")


def test_other_formats_are_converted_once(tmp_path, cache):
    own = tmp_path / "own.npz"
    np.savez(own, w=np.arange(3.0))
    calls = []

    def convert(tensors):
        calls.append(tensors)
        return {"doubled": 2 * tensors["w"]}

    unknown = weights.Source("toy", "toy.pth", "http://127.0.0.1:1/toy.pth", SHA256)
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"own.npz: not a known file of toy \(SHA-256"):
            tensors = weights.load(unknown, own, convert)
        np.testing.assert_array_equal(tensors["doubled"], [0.0, 2.0, 4.0])
    assert len(calls) == 1
    (converted,) = cache.iterdir()
    assert converted.name.endswith(".safetensors")
    np.testing.assert_array_equal(load_file(converted)["doubled"], [0.0, 2.0, 4.0])

    np.savez(own, w=np.ones(3))
    known = weights.Source("toy", "toy.pth", "", SHA256, {weights.sha256_of(own): "own"})
    np.testing.assert_array_equal(weights.load(known, own, convert)["doubled"], 2 * np.ones(3))
    assert len(calls) == 2, "another file is converted anew"


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    np.savez(tmp_path / "own.npz", w=np.arange(3.0))
    toy = weights.Source("toy", "toy.pth", "http://127.0.0.1:1/toy.pth")
    assert weights.load(toy, tmp_path / "own.npz", dict).keys() == {"w"}
