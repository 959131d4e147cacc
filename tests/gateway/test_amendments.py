"""What a request asks for that its engine leaves out: shorter embeddings, documents of rankings. And absent paths."""

from __future__ import annotations

import base64
import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest

from accelerd.engines.base import Traits
from accelerd.gateway.absent_paths import INSTEAD
from tests.gateway.bench import Speaker, bench, on_both_loops, plain

VECTOR = [0.6, 0.0, 0.0, 0.8]
EMBEDS = {"llama-server": Speaker(says=Traits(frozenset(("embeddings", "rerank"))))}


def embeddings(*vectors: Any) -> bytes:
    data = [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(vectors)]
    return json.dumps({"object": "list", "data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}}).encode()


async def ask(directory: Path, path: str, said: bytes, **body: Any) -> tuple[int, Any, Any]:
    """Status, answer, and what the engine was sent."""
    async with bench(directory, others=EMBEDS) as b, await b.client() as client:
        b.engine.says(plain(said))
        answer = await client.ask(path=path, body={"model": "m", **body})
        return answer.status, answer.json(), b.engine.requests[0].json()


@pytest.mark.parametrize(
    ("vector", "dimensions", "expected"),
    [
        (VECTOR, 2, [1.0, 0.0]),  # of length 1 again
        (VECTOR, 4, VECTOR),
        ([3.0, 4.0, 5.0], 2, [3.0, 4.0]),  # not made to be of length 1
        ([0.0, 0.0, 1.0], 2, [0.0, 0.0]),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
@on_both_loops
async def test_embeddings_are_cut_to_the_dimensions_that_are_asked_for(
    tmp_path: Path, vector: list[float], dimensions: int, expected: list[float], packed: bool
) -> None:
    there: Any = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if packed else vector
    status, answer, _ = await ask(
        tmp_path, "/v1/embeddings", embeddings(there, there), input="a", dimensions=dimensions
    )
    assert status == 200
    assert answer["usage"] == {"prompt_tokens": 1, "total_tokens": 1}
    for one in answer["data"]:
        got = one["embedding"]
        found = struct.unpack(f"<{dimensions}f", base64.b64decode(got)) if packed else got
        assert all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(found, expected, strict=True))


@on_both_loops
async def test_more_dimensions_than_there_are_are_refused(tmp_path: Path) -> None:
    status, answer, _ = await ask(tmp_path, "/v1/embeddings", embeddings(VECTOR), input="a", dimensions=5)
    assert (status, answer["error"]["param"]) == (400, "dimensions")
    assert "4 dimensions" in answer["error"]["message"]


@pytest.mark.parametrize(
    "said", [b"[]", b'{"data":5}', b'{"data":[{"embedding":"?"}]}', b'{"data":[{"embedding":[[1]]}]}']
)
@on_both_loops
async def test_what_is_no_embedding_stays_as_it_is(tmp_path: Path, said: bytes) -> None:
    status, answer, _ = await ask(tmp_path, "/v1/embeddings", said, input="a", dimensions=1)
    assert (status, answer) == (200, json.loads(said))


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank", "/api/v1/rerank"])
@on_both_loops
async def test_rankings_as_cohere_and_jina_have_them(tmp_path: Path, path: str) -> None:
    said = {"results": [{"index": 1, "relevance_score": 0.5}, {"index": 0, "relevance_score": -1.0}]}
    documents = [{"text": "x", "id": 1}, "y"]
    more = {"query": "q", "documents": documents, "return_documents": True, "top_n": 2}
    status, answer, sent = await ask(tmp_path, path, json.dumps(said).encode(), **more)
    assert (status, sent["documents"], sent["top_n"]) == (200, ["x", "y"], 2)
    assert [one["document"] for one in answer["results"]] == [{"text": "y"}, {"text": "x"}]


@pytest.mark.parametrize("documents", [["a", "b"], [{"image": "x"}], [{"text": 5}, "a"]])
@on_both_loops
async def test_documents_that_are_no_objects_with_texts_are_the_engines_matter(tmp_path: Path, documents: Any) -> None:
    said = {"results": [{"index": 7, "relevance_score": 0.5}]}
    more = {"query": "q", "documents": documents, "return_documents": False}
    status, answer, sent = await ask(tmp_path, "/v1/rerank", json.dumps(said).encode(), **more)
    assert (status, answer, sent["documents"]) == (200, said, documents)


@pytest.mark.parametrize("first", sorted(INSTEAD))
@on_both_loops
async def test_what_accelerd_does_not_have_says_what_to_do_instead(tmp_path: Path, first: str) -> None:
    async with bench(tmp_path) as b, await b.client() as client:
        for path in (f"/v1/{first}/x/y", f"/api/v1/{first}/x"):
            answer = await client.ask(path=path, body={})
            error = answer.json()["error"]
            assert (answer.status, error["code"]) == (404, "not_found")
            assert error["message"].endswith(INSTEAD[first])
