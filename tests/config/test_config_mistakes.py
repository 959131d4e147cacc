"""Every mistake is reported with file, line, key and what was expected, all of them at once."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from config_home import Home
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accelerd import config
from accelerd.config import ConfigErrors, Problem, shape, synonyms
from accelerd.config.load import trust_problem

MISTAKES = """\
contxt = 1
[server]
listen = ["127.0.0.1:99999", "127.0.0.1:1", "127.0.0.1:1"]
max_body = "lots"
allowed_hosts = ["*", "http://x", "x:1"]
allowed_origins = ["*", "https://x/path"]
[defaults]
path = "/x"
idle_timeout = 0
[models.qwen]
path = "/x"
model = "a/b"
contxt = 1
context = 5
parallel = true
aliases = ["ok", 3, "../x"]
kv_cache_type = {k = "q 9", w = 1}
gpu_layers = "most"
profile = "nothing"
env = {"A B" = "1", C = 5}
start_timeout = 1979-05-27
[models.empty]
[models.number]
path = 3
"""


def test_all_mistakes_of_all_files_at_once(home: Home) -> None:
    home.write(MISTAKES)
    home.write("[models.late]\nmodel = 'x y'\n", "accelerd.toml.d/a.toml")
    home.write("models = 3\n", "accelerd.toml.d/b.toml")
    found = [(p.file.removeprefix("accelerd.toml"), p.line, p.key) for p in home.check()[1] if p.severity == "error"]
    assert found == [
        ("", 1, "contxt"),
        ("", 3, "server.listen[0]"),
        ("", 3, "server.listen[2]"),
        ("", 4, "server.max_body"),
        ("", 5, "server.allowed_hosts[0]"),
        ("", 5, "server.allowed_hosts[1]"),
        ("", 5, "server.allowed_hosts[2]"),
        ("", 6, "server.allowed_origins[0]"),
        ("", 6, "server.allowed_origins[1]"),
        ("", 8, "defaults.path"),
        ("", 9, "defaults.idle_timeout"),
        ("", 12, "models.qwen.model"),
        ("", 13, "models.qwen.contxt"),
        ("", 14, "models.qwen.context"),
        ("", 15, "models.qwen.parallel"),
        ("", 16, "models.qwen.aliases[1]"),
        ("", 16, "models.qwen.aliases[2]"),
        ("", 17, "models.qwen.kv_cache_type.k"),
        ("", 17, "models.qwen.kv_cache_type.w"),
        ("", 18, "models.qwen.gpu_layers"),
        ("", 19, "models.qwen.profile"),
        ("", 20, 'models.qwen.env."A B"'),
        ("", 20, "models.qwen.env.C"),
        ("", 21, "models.qwen.start_timeout"),
        ("", 22, "models.empty"),
        ("", 24, "models.number.path"),
        (".d/a.toml", 2, "models.late.model"),
        (".d/b.toml", 1, "models"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[models.q]\npath='/q'\ncontxt = 1", "3: models.q.contxt: unknown key; did you mean 'context'?"),
        ("[models.q]\npath='/q'\nctx-size = 1", "3: models.q.ctx-size: unknown key; did you mean 'context'?"),
        ("[models.q]\npath='/q'\nttl = 1", "3: models.q.ttl: unknown key; did you mean 'idle_timeout'?"),
        ("[models.q]\npath='/q'\nxyzzy = 1", "3: models.q.xyzzy: unknown key"),
        (
            "[models.q]\npath='/q'\ntemperature = 1",
            "3: models.q.temperature: unknown key; it belongs in sampling = {…}",
        ),
        (
            "[profiles.q]\naliases = []",
            "2: profiles.q.aliases: unknown key; it belongs in [models.NAME] or [routes.NAME]",
        ),
        ("[server]\nmax_queue = 1", "2: server.max_queue: unknown key; it belongs in [scheduler]"),
        ("[model.q]\n", "1: model: unknown section; did you mean 'models'?"),
        ("[engines.llama_server]\n", "1: engines.llama_server: unknown key; did you mean 'llama-server'?"),
        ("[Server]\n", "1: Server: unknown section; did you mean 'server'?"),
        (
            "[defaults]\ncontext = '4k'",
            "2: defaults.context: expected a whole number of tokens from 128 to 134217728, "
            '"auto", or "model" for the whole trained context, got "4k"',
        ),
        (
            "[defaults]\nengine = 'x'",
            '2: defaults.engine: expected one of "llama-server", "flm", "lemonade", "command", "vllm", "remote", '
            'got "x"',
        ),
        ("[defaults]\nmmap = 1", "2: defaults.mmap: expected true or false, got 1"),
        ("[defaults]\nsampling.top_p = nan", "2: defaults.sampling.top_p: expected a number from 0 to 1, got nan"),
        ("[defaults]\nsampling = 1", "2: defaults.sampling: expected a table, got 1"),
        ("[[models]]\npath = '/x'", "1: models: expected a table, got an array"),
        (
            "[scheduler]\nbackoff_initial = '2m'",
            "2: scheduler.backoff_initial: backoff_initial (2m) is longer than backoff_max (1m)",
        ),
        (
            "[defaults]\nbatch = 10\nubatch = 20\n[models.a]\npath='/a'\n[models.b]\npath='/b'",
            "3: defaults.ubatch: expected at most batch = 10 (defaults (accelerd.toml:2)), got 20",
        ),
        (
            "[models.q]\npath='/q'\nembeddings=true\nrerank=true",
            "4: models.q.rerank: a model can have embeddings or rerank, not both; "
            "embeddings is set, too (model (accelerd.toml:3))",
        ),
        (
            "[models.q]\npath='/q'\nkv_cache_type='q8_0'\nflash_attention=false",
            "3: models.q.kv_cache_type.v: "
            "a quantised V cache requires flash attention, which is off (model (accelerd.toml:4))",
        ),
        (
            "[models.q]\npath='~bob/q'",
            '2: models.q.path: expected an absolute path, or one that begins with "~/", got "~bob/q"',
        ),
        (
            "[profiles.big]\n[models.q]\npath='/q'\nprofile='bgi'",
            "4: models.q.profile: there is no [profiles.bgi]; did you mean 'big'?",
        ),
        (
            "[models.q]",
            '1: models.q: set path = "…" (a file) or model = "…" (of Hugging Face, or the engine\'s own name)',
        ),
    ],
)
def test_what_a_mistake_says(home: Home, text: str, says: str) -> None:
    assert home.errors(text) == [f"accelerd.toml:{says}"]


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("[server]\nlisten = [\n", 2, None),
        ("[server]\n\nlisten 5\n", 3, 8),
        ("a = 1\na = 2\n", 2, 6),
        ("[models.q]\npath = 'unclosed\n", 2, None),
        ("x = " + "[" * 5000 + "]" * 5000, None, None),
        ("x = " + "9" * 5000, None, None),
    ],
)
def test_broken_toml_is_an_error_with_file_line_and_column(
    home: Home, text: str, line: int | None, column: int | None
) -> None:
    found, problems = home.check(text)
    assert found is None
    assert [(p.file, p.line, p.column) for p in problems] == [("accelerd.toml", line, column)]
    assert problems[0].message.startswith("invalid TOML: ")
    with pytest.raises(ConfigErrors, match=r"cannot use the configuration: accelerd\.toml"):
        home.load()


QUOTES = '; a text needs quotes: "…"'
NAME = "; a name with other characters than letters, digits, - and _ needs quotes: "


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("path = ~/models/x.gguf", QUOTES),
        ("path = /srv/x.gguf  # here", QUOTES),
        ("idle_timeout = 10m", QUOTES),
        ("memory = 12 GiB", QUOTES),
        ("listen = 127.0.0.1:4000", QUOTES),
        ("listen = [127.0.0.1:4000]", QUOTES),
        ("aliases = [\n  gpt-4o,\n]", QUOTES),
        ("env = { HF_TOKEN = hf_geheim }", QUOTES),
        ("pin = True", "; write true in lower case"),
        ("preload = FALSE", "; write false in lower case"),
        ("[models.gemma3:4b]", f'{NAME}[models."…"]'),
        ("[models.org/repo] # mine", f'{NAME}[models."…"]'),
        ("[routes.a b]", f'{NAME}[routes."…"]'),
        ("path =", ""),
        ('path = "x" y', ""),
        ("[models.x] path = '/x'", ""),
        ("listen 5", ""),
        ("[models.x", ""),
        ("a = 1\na = 2", ""),
        ("path = 'a'\npath = 'b'", ""),
    ],
)
def test_where_quotes_are_missing_it_says_so(home: Home, text: str, advice: str) -> None:
    _, [problem] = home.check(text + "\n")
    said, _, rest = problem.message.partition(";")
    assert said.startswith("invalid TOML: ")
    assert (f";{rest}" if rest else "") == advice
    assert "geheim" not in problem.message


@pytest.mark.parametrize("table", ["[models.hello]", '[models."a.b c"]'])
def test_a_table_that_stands_there_twice_is_named_as_it_is_written(home: Home, table: str) -> None:
    _, [problem] = home.check(f"{table}\n{table}\n")
    assert (problem.line, problem.message) == (2, f"invalid TOML: {table} is declared twice, first in line 1")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a=1\nb=2\na=3", 3, "a is set twice, first in line 1"),
        ("[models.x]\npath='/x'\n\npath='/y'\n", 4, "models.x.path is set twice, first in line 2"),
        ("a.b=1\na.b=2\n", 2, "a.b is set twice, first in line 1"),
        ("a.b.c=1\na.b=3\n", 2, "a.b is set twice, first in line 1"),
        ("a.b.c=1\n[a.b]\n", 2, "[a.b] is declared twice, first in line 1"),
        ("[a.b]\nx=1\n[a]\nb.c=2\n", 4, "a.b is set twice, first in line 1"),
        ("a={x=1, y=2, x=3}\n", 1, "a.x is set twice, first in line 1"),
        ("z=0\na={b={c=1,c=2}}\n", 2, "a.b.c is set twice, first in line 2"),
        ("a={x=1}\na.y=2\n", 2, "a has its value in line 1 already, and nothing can be added to it here"),
        ("a={x=1}\n[a]\ny=2\n", 2, "[a] is declared twice, first in line 1"),
        ("a={b=1}\n\n[a.c]\n", 3, "a has its value in line 1 already, and nothing can be added to it here"),
        ("[m]\ns={k=1}\n[m.s]\nj=1\n", 3, "[m.s] is declared twice, first in line 2"),
        ("[[a]]\nx=1\n[[a]]\nx=2\nx=3\n", 5, "a[1].x is set twice, first in line 4"),
        ("[[a]]\n[a]\n", 2, "[a] is declared twice, first in line 1"),
        ("[a]\n[[a]]\n", 2, "[a] is declared twice, first in line 1"),
        ("a=[1]\n[[a]]\n", 2, "[a] is declared twice, first in line 1"),
        ("a=[\n1,\n]\na=[\n2,\n]\n", 4, "a is set twice, first in line 1"),
        ('x="""\n[a]\n[a]\n"""\n[a]\n[b]\n[a]\n', 7, "[a] is declared twice, first in line 5"),
    ],
)
def test_what_is_set_twice_is_named_with_both_places(home: Home, text: str, line: int, says: str) -> None:
    _, [problem] = home.check(text)
    assert (problem.line, problem.message) == (line, f"invalid TOML: {says}")


def test_one_broken_file_hides_no_mistake_in_another_and_invents_none(home: Home) -> None:
    home.write("[profiles.big\n")
    home.write("[models.q]\npath = '/q'\nprofile = 'big'\ncontxt = 1\n", "accelerd.toml.d/q.toml")
    assert home.errors() == [
        "accelerd.toml:1:14: invalid TOML: expected ']' at the end of a table declaration",
        "accelerd.toml.d/q.toml:4: models.q.contxt: unknown key; did you mean 'context'?",
    ]


@pytest.mark.parametrize(
    ("table", "name"),
    [
        ("[models.qwen2.5]", 'models."qwen2.5"'),
        ("[models.llama-3.1.8b]", 'models."llama-3.1.8b"'),
        ("[routes.a.b]", 'routes."a.b"'),
        ("[profiles.v1.0]", 'profiles."v1.0"'),
    ],
)
def test_a_name_with_dots_needs_quotes(home: Home, table: str, name: str) -> None:
    first, *_ = home.errors(f'{table}\ndescription = "x"\n')
    assert first.endswith(f": unknown key; a name with dots needs quotes: [{name}]")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[server]\nlisten = 4000\n", "got 4000"),
        ("[models.m]\npath = '/m'\nlora = 'x'\n", 'got "x"'),
        ("[models.m]\npath = '/m'\nextra_args = 5\n", "got 5"),
        ("[models.m]\npath = '/m'\nextra_args = { a = 1 }\n", "got a table"),
    ],
)
def test_brackets_are_no_advice_for_what_is_no_element_either(home: Home, text: str, says: str) -> None:
    (error,) = home.errors(text)
    assert error.endswith(says)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ('[server]\napi_key = "geheim"\n', "key_file"),
        ('[server]\nkeys = ["geheim"]\n', "key_file"),
        ('[engines.llama]\nbinary = "/x"\n', "llama-server"),
        ('[models.m]\npath = "/m"\ndevice = "cuda0"\n', "gpus"),
        ('[remotes.r]\nurl = "http://h"\nkey = "geheim"\n', "key_file"),
        ('[remotes.r]\nurl = "http://h"\napi_key = "geheim"\n', "key_file"),
        ('[remotes.r]\nurl = "http://h"\nverify = false\n', "ca_file"),
        ('[remotes.r]\nurl = "http://h"\nssl_verify = false\n', "ca_file"),
        ('[remotes.r]\nurl = "http://h"\nextra_headers = {X = "geheim"}\n', "headers"),
        ('[remotes.r]\nurl = "http://h"\nstream_timeout = 5\n', "stall_timeout"),
        ('[remotes.r]\nurl = "http://h"\ntimeout = 5\n', "first_byte_timeout"),
        ('[models.m]\npath = "/m"\ntimeout = 5\n', "start_timeout"),
        ('[models.m]\npath = "/m"\nmax_parallel_requests = 5\n', "concurrency"),
        ('[models.m]\npath = "/m"\nname = "Qwen"\n', "description"),
        ('[models.m]\npath = "/m"\nhealthCheckTimeout = 5\n', "start_timeout"),
        ('[models.m]\npath = "/m"\nfilters = {stripParams = "top_k"}\n', "variants"),
        ('[models.m]\npath = "/m"\n[models.m.variants.v]\nsystem_prompt = "x"\n', "system"),
        ('[models.m]\npath = "/m"\n[models.m.variants.v]\nstripParams = ["x"]\n', "remove"),
        ('[models.m]\npath = "/m"\n[models.m.variants.v]\nsetParams = {top_k = 1}\n', "set"),
        ('[models.m]\nengine="command"\n[models.m.command]\npreset="kokoro"\ncheckEndpoint="/h"\n', "ready_path"),
        ('[models.m]\nengine="command"\n[models.m.command]\npreset="kokoro"\nuseModelName="x"\n', "served_name"),
        ('[models.m]\nengine="command"\n[models.m.command]\npreset="kokoro"\ncmd=["x"]\n', "argv"),
        ('[models.m]\npath = "/m"\n[routes.r]\nmodels=["m"]\nnum_retries=1\n', "retries"),
        ('[models.m]\npath = "/m"\n[routes.r]\nmodels=["m"]\ncooldown_time=1\n', "cooldown"),
        ('[models.m]\npath = "/m"\n[routes.r]\nmodels=["m"]\nmodel_group_alias=["x"]\n', "aliases"),
        ('[models.m]\npath = "/m"\n[routes.r]\nmodels=["m"]\ncontext_window_fallbacks=["m"]\n', "context_fallbacks"),
        ('[models.m]\npath="/m"\n[routes.r.tiers]\nsimple="m"\nSIMPLE="m"\n', "simple"),
        ('[models.m]\npath="/m"\n[routes.r.tiers]\nsimple="m"\nReasoning="m"\n', "reasoning"),
        (
            '[models.m]\npath="/m"\n[routes.r]\ntiers={simple="m"}\ncomplexity={escalation_keywords=["x"]}\n',
            "keyword_tier_rules",
        ),
        ("[model_list]\n", "models"),
        ('[general_settings]\nmaster_key = "geheim"\n', "server"),
        ("[peers.x]\n", "remotes"),
    ],
)
def test_keys_as_other_programs_have_them(home: Home, text: str, meant: str) -> None:
    (error,) = home.errors(text)
    assert error.endswith((f"unknown key; did you mean '{meant}'?", f"unknown section; did you mean '{meant}'?"))
    assert "geheim" not in error


@pytest.mark.parametrize(
    "name", ["gemma3:4b", "gpt-4o", "a/b/c", "https://example.org/x.bin", "https://me:geheim@example.org/x.gguf"]
)
def test_what_names_no_model_of_a_hub_is_a_mistake(home: Home, name: str) -> None:
    for table in ("[models.m]\n", '[profiles.p]\nengine = "llama-server"\n[models.m]\nprofile = "p"\n'):
        (error,) = home.errors(f'{table}model = "{name}"\n')
        assert "models.m.model: " in error
        assert "geheim" not in error
    assert "ORG/REPO" in error or "http" in name
    for engine in ("flm", "lemonade"):
        assert home.errors(f'[models.m]\nengine = "{engine}"\nmodel = "{name}"\n') == []


@pytest.mark.parametrize("name", ["a/b", "hf:a/b:Q4_K_M", "a/b/c.gguf", "https://example.org/x.gguf?sig=1"])
def test_what_names_a_model_of_a_hub_is_none(home: Home, name: str) -> None:
    assert home.errors(f'[models.m]\nmodel = "{name}"\n') == []


def test_a_mistake_in_a_profile_is_reported_once_however_many_models_take_it(home: Home) -> None:
    profile = "[profiles.p]\nubatch = 1024\n"
    models = "".join(
        f"[models.{name}]\npath = '/{name}'\nprofile = 'p'\nbatch = {batch}\n"
        for name, batch in (("a", 512), ("b", 2048), ("c", 256))
    )
    own = "[models.d]\npath = '/d'\nbatch = 8\nubatch = 9\n"
    assert home.errors(profile + models + own) == [
        "accelerd.toml:2: profiles.p.ubatch: expected at most batch = 512 (model (accelerd.toml:6)), got 1024",
        "accelerd.toml:18: models.d.ubatch: expected at most batch = 8 (model (accelerd.toml:17)), got 9",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("base_url = 'https://x'", "did you mean 'url', which belongs in [remotes.NAME]?"),
        ("api_base = 'https://x'", "did you mean 'url', which belongs in [remotes.NAME]?"),
        ("argv = ['x']", "it belongs in [models.NAME.command]"),
        ("keyword_tier_rules = []", "it belongs in [routes.NAME.complexity]"),
        ("system_prompt = 'x'", "did you mean 'system', which belongs in [models.NAME.variants.OTHER]?"),
        ("api_key = 'geheim'", "did you mean 'key_file', which belongs in [server] or [remotes.NAME]?"),
        ("checkEndpoint = '/h'", "did you mean 'ready_path', which belongs in [models.NAME.command]?"),
    ],
)
def test_keys_of_other_programs_that_belong_elsewhere(home: Home, text: str, says: str) -> None:
    (error,) = home.errors(f"[models.m]\npath = '/m'\n{text}\n")
    assert error.endswith(f"unknown key; {says}")


def test_what_other_programs_call_a_key_leads_to_one_that_there_is() -> None:
    known = {*shape.homes(), *(shape.document().table or {}), "llama-server"}
    assert {one for name in synonyms._SYNONYMS for one in synonyms.meant_by(name)} <= known


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[routes.r.tiers]\nsimple='m'\n[routes.r.complexity]\nkeyword_tier_rules=[{keywords=['x'], tier='SIMPLE'}]",
         'got "SIMPLE"; did you mean "simple"?'),
        ("[remotes.r]\nurl = 'http://h'\napi = 'OpenAI'\n", 'got "OpenAI"; did you mean "openai"?'),
        ("[models.q]\npath = '/q'\nengine = 'llama.cpp'\n", 'got "llama.cpp"; did you mean "llama-server"?'),
        ("[models.q]\npath = '/q'\nsplit_mode = 'layers'\n", 'got "layers"; did you mean "layer"?'),
        ("[models.q]\npath = '/q'\nsplit_mode = 'xyzzy'\n", 'got "xyzzy"'),
    ],
)  # fmt: skip
def test_a_word_of_a_few_that_is_written_otherwise(home: Home, text: str, says: str) -> None:
    (error,) = home.errors(f"[models.m]\npath = '/m'\n{text}\n")
    assert error.endswith(says)


def test_not_utf8_names_the_line(home: Home) -> None:
    assert home.errors(b"# fine\n[server]\nkey_file = '\xff'\n") == [
        "accelerd.toml:3: not UTF-8: cannot decode byte 0xff"
    ]


def test_files_that_are_no_files(home: Home) -> None:
    home.main.mkdir(mode=0o700)
    home.dropins.mkdir(mode=0o700)
    os.mkfifo(home.dropins / "a.toml", 0o600)
    (home.dropins / "b.toml").symlink_to("nowhere")
    assert home.errors() == [
        "accelerd.toml: expected a file, found a directory",
        "accelerd.toml.d/a.toml: expected a regular file",
        "accelerd.toml.d/b.toml: cannot read the file: No such file or directory",
    ]


@pytest.mark.parametrize("name", [b"a\n.toml", b"\xff.toml", b"a\x1b[31m.toml"])
def test_names_of_files_that_cannot_be_shown_are_refused(home: Home, name: bytes) -> None:
    home.dropins.mkdir(mode=0o700)
    (home.dropins / os.fsdecode(name)).write_text("")
    (error,) = home.errors()
    assert error.isprintable()
    assert error.isascii()
    assert error.endswith("the file name contains unprintable characters; rename the file")


def test_a_file_where_the_folder_of_drop_ins_should_be(home: Home) -> None:
    home.write("", "accelerd.toml.d")
    assert home.errors() == ["accelerd.toml.d: cannot read the directory: Not a directory"]


def test_what_cannot_be_reached_is_not_taken_for_an_empty_configuration(home: Home) -> None:
    home.write("", "file")
    found, problems = config.check(home.folder / "file" / "accelerd.toml", home.path)
    assert found is None
    assert [problem.message for problem in problems] == [
        "cannot read the file: Not a directory",
        "cannot read the directory: Not a directory",
    ]


def test_a_huge_file_is_refused(home: Home) -> None:
    assert home.errors(b"#" * (5 << 20)) == ["accelerd.toml: the file is larger than 4 MiB"]


@pytest.mark.parametrize(
    ("mode", "remedy"),
    [(0o602, "chmod o-w"), (0o666, "chmod o-w"), (0o646, "chmod o-w")],
)
def test_a_file_that_everybody_can_write_is_refused_with_the_remedy(home: Home, mode: int, remedy: str) -> None:
    home.write("").chmod(mode)
    text = f"the file is writable by everyone; run: {remedy} {home.main}"
    assert home.errors() == [f"accelerd.toml: {text}"]


def test_a_folder_that_everybody_can_write_is_refused(home: Home) -> None:
    home.write("", "accelerd.toml.d/a.toml")
    home.dropins.chmod(0o777)
    text = f"the directory is writable by everyone; run: chmod o-w {home.dropins}"
    assert home.errors() == [f"accelerd.toml.d: {text}"]


@pytest.mark.parametrize(
    ("uid", "gid", "mode", "says"),
    [
        (1000, 1000, 0o100644, None),
        (1000, 1000, 0o100664, None),  # the user's own group
        (0, 0, 0o100644, None),
        (1000, 50, 0o100664, "group 50; run: chmod g-w"),
        (1001, 1000, 0o100600, "belongs to user 1001, not to you; run: sudo chown 1000 "),
        (1000, 1000, 0o100602, "chmod o-w"),
        (0, 0, 0o041777, None),  # /tmp
        (0, 0, 0o040777, "chmod o-w"),
    ],
)
def test_who_could_have_written_the_file(uid: int, gid: int, mode: int, says: str | None) -> None:
    status = os.stat_result((mode, 1, 1, 1, uid, gid, 0, 0, 0, 0))
    reason = trust_problem(status, "/f", 1000, 1000)
    assert reason is None if says is None else reason is not None and says in reason


def test_warnings_are_not_counted_as_errors() -> None:
    one = Problem("accelerd.toml", 1, "a", "wrong")
    two = Problem("accelerd.toml", 2, "b", "odd", severity="warning")
    assert str(ConfigErrors([one, two])).startswith("cannot use the configuration: 1 error: accelerd.toml:1: a: wrong")


def test_errors_for_programs(home: Home) -> None:
    with pytest.raises(ConfigErrors) as caught:
        home.load("a = 1\nb = 1\nc = 1\nd = 1\n")
    error = caught.value
    assert (error.code, error.status, len(error.problems)) == ("config_invalid", 422, 4)
    assert str(error).startswith("cannot use the configuration: 4 errors: accelerd.toml:1: a: unknown section")
    assert str(error).endswith("; and 1 more")
    first = json.loads(json.dumps(error.openai()))["error"]["problems"][0]
    assert (first["file"], first["line"], first["key"], first["severity"]) == ("accelerd.toml", 1, "a", "error")


def test_a_problem_is_one_line_whatever_the_key_holds(home: Home) -> None:
    for line in home.errors('["a\\nb"]\n[models."c\\u001b"]\npath = "x\\u0000"\n[server]\nmax_body = "\\r\\n"\n'):
        assert line.isprintable(), line


def test_text_of_problems() -> None:
    assert str(Problem("f.toml", 3, "a.b", "bad")) == "f.toml:3: a.b: bad"
    assert str(Problem("f.toml", 3, "", "bad", column=7)) == "f.toml:3:7: bad"
    assert str(Problem("f.toml", None, "", "bad", "warning")) == "f.toml: warning: bad"


def test_missing_files_are_warnings_of_check_only(home: Home) -> None:
    (home.path / "there.gguf").write_bytes(b"GGUF")
    text = (
        '[server]\n\n[engines.llama-server]\nbinary = "/nowhere/llama-server"\n'
        '[scheduler]\nmemory = "1GiB"\n'
        '[models.a]\npath = "~/there.gguf"\nmmproj = "~/gone.gguf"\n[models.b]\npath = "~"\nmemory = "2GiB"\n'
        '[models.c]\nmodel = "x/y"\nextra_args = ["-ngl", "9", "$HOME/x"]\nenv.P = "~/x"\n'
    )
    assert home.warnings(text) == [
        "accelerd.toml:4: warning: engines.llama-server.binary: no such file: /nowhere/llama-server",
        f"accelerd.toml:9: warning: models.a.mmproj: no such file: {home.path}/gone.gguf",
        f"accelerd.toml:11: warning: models.b.path: expected a file, found a directory: {home.path}",
        "accelerd.toml:12: warning: models.b.memory: 2GiB never fits, because scheduler.memory is 1GiB",
        "accelerd.toml:15: warning: models.c.extra_args[0]: -ngl has its own setting: "
        "use gpu_layers = … so that accelerd can take it into account",
        "accelerd.toml:15: warning: models.c.extra_args[2]: is passed unchanged: ~ and $ are not expanded",
        "accelerd.toml:16: warning: models.c.env.P: is passed unchanged: ~ and $ are not expanded",
    ]
    assert set(home.load().models) == {"a", "b", "c"}


def test_checking_writes_nothing(home: Home) -> None:
    home.write(MISTAKES)
    before = {path: path.stat().st_mtime_ns for path in home.path.rglob("*")}
    home.check()
    assert {path: path.stat().st_mtime_ns for path in home.path.rglob("*")} == before
    assert stat.S_IMODE(home.main.stat().st_mode) == 0o600
    assert not Path(home.dropins).exists()


words = st.sampled_from(
    ["server", "listen", "scheduler", "memory", "engines", "llama-server", "binary", "defaults", "profiles", "models",
     "a", "b", "path", "model", "aliases", "profile", "context", "kv_cache_type", "k", "sampling", "top_p", "env", "X",
     "extra_args", "idle_timeout", "gpu_layers", "group", "key_file", "contxt"]
)  # fmt: skip
junk = (
    st.sampled_from(["/x", "a", "b", "never", "auto", "1h", "0.0.0.0:1", "--tools", "q8_0", "x\0", "~x", ""])
    | st.integers()
    | st.floats()
    | st.booleans()
    | st.dates()
)
trees = st.recursive(junk, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=5))


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.dictionaries(words, st.dictionaries(words, trees, max_size=4) | trees, max_size=4), st.booleans())
def test_whatever_is_written_is_loaded_or_explained(home: Home, document: dict[str, Any], as_dropin: bool) -> None:
    home.write("[profiles.a]\n[models.a]\npath = '/a'\n")
    text = tomli_w.dumps(document)
    home.write(text if as_dropin else "", "accelerd.toml.d/a.toml")
    home.write("" if as_dropin else text, "accelerd.toml.d/b.toml")
    found, problems = home.check()
    assert (found is None) == any(problem.severity == "error" for problem in problems)
    for problem in problems:
        assert problem.line, problem
        assert str(problem).isprintable()
        assert problem.file.startswith("accelerd.toml")


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.text("[]{}=\"'.,#\n\\ abc1", max_size=60).map(str.encode))
def test_whatever_bytes_are_in_the_file_it_is_loaded_or_explained(home: Home, data: bytes) -> None:
    found, problems = home.check(data)
    assert (found is None) == bool(problems)
    assert all(str(problem).isprintable() for problem in problems)


def test_nobody_can_listen_nowhere(home: Home) -> None:
    home.write("[server]\nmax_body = 1\nlisten = []\n")
    (problem,) = [one for one in home.check()[1] if one.key == "server.listen"]
    assert (problem.severity, problem.line) == ("error", 3)
    assert "at least one address" in problem.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[server]\nlisten = "127.0.0.1:4711"\n', 'a single one is written in brackets: ["127.0.0.1:4711"]'),
        ('[models.m]\npath = "/m"\naliases = "gpt"\n', 'a single one is written in brackets: ["gpt"]'),
        ('[models.m]\npath = "/m"\nextra_args = "--verbose"\n', 'a single one is written in brackets: ["--verbose"]'),
        ('[models.m]\npath = "/m"\nextra_args = "-ngl 99"\n', 'each one is written in brackets: ["-ngl", "99"]'),
    ],
)
def test_a_value_that_should_be_an_array_shows_how(home: Home, text: str, words: str) -> None:
    [problem] = [one for one in home.check(text)[1] if one.severity == "error"]
    assert problem.message.endswith(words)


def test_what_a_tool_s_drop_in_overrides_is_said_where_a_person_wrote_it(home: Home) -> None:
    tools = "# Written by packaging/install, which may write it again.\n"
    home.write(
        f'{tools}[engines.llama-server]\nbinary = "/gpu"\n[server]\nmax_connections = 7\n', "accelerd.toml.d/00.toml"
    )
    home.write('[models.m]\npath = "/m"\ncontext = 512\n', "accelerd.toml.d/mine.toml")
    home.write("# Written by accelctl\n[models.m]\ncontext = 1024\n", "accelerd.toml.d/zz.toml")
    mine = '# Written by packaging/install, which never changes it again.\n[engines.llama-server]\nbinary = "/cpu"\n'
    warnings = [one for one in home.check(f"{mine}[server]\nmax_connections = 7\n")[1] if "no effect" in one.message]
    assert [(one.file, one.line, one.key, one.message, one.severity) for one in warnings] == [
        ("accelerd.toml", 3, "engines.llama-server.binary",
         "has no effect: accelerd.toml.d/00.toml:3 sets another value", "warning"),
        ("accelerd.toml.d/mine.toml", 3, "models.m.context",
         "has no effect: accelerd.toml.d/zz.toml:3 sets another value", "warning"),
    ]  # fmt: skip
    home.write("[server]\nmax_connections = 9\n", "accelerd.toml.d/zzz.toml")
    assert not [one for one in home.check()[1] if one.key == "server.max_connections"], "a person's own drop-in"


def test_every_name_belongs_to_one_model_or_route(home: Home) -> None:
    problems = home.check(
        """\
[server]
default_model = "qwenn"
[models.qwen]
path = "/m"
aliases = ["a", "a", "both", "*"]
[models.small]
path = "/m"
aliases = ["b", "*"]
[routes.both]
models = ["qwen"]
aliases = ["b", "c"]
[routes.small]
models = ["qwen"]
"""
    )[1]
    assert [
        (one.line, one.key, one.message, one.severity) for one in problems if "no such file" not in one.message
    ] == [
        (2, "server.default_model", "there is no model or route 'qwenn'; did you mean 'qwen'?", "error"),
        (5, "models.qwen.aliases[1]", "'a' is a name of this model already", "warning"),
        (5, "models.qwen.aliases[2]", "the name 'both' is already taken by routes.both (accelerd.toml:9)", "error"),
        (8, "models.small.aliases[1]", "the name '*' is already taken by models.qwen (accelerd.toml:5)", "error"),
        (11, "routes.both.aliases[0]", "the name 'b' is already taken by models.small (accelerd.toml:8)", "error"),
        (12, "routes.small", "the name 'small' is already taken by models.small (accelerd.toml:6)", "error"),
    ]
    for name in ("qwen", "both", "b", "c"):
        good = f'[server]\ndefault_model = "{name}"\n[models.qwen]\npath = "/m"\naliases = ["b"]\n'
        good += '[routes.both]\nmodels = ["qwen"]\naliases = ["c"]\n'
        assert home.load(good).server.default_model == name
