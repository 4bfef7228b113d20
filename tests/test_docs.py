"""The documentation tells the truth: pages are current, snippets run, links lead somewhere."""

import importlib
import importlib.util
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.fixture(scope="module")
def generate():
    """Import docs/reference/generate.py."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/reference/generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name", ["cli.md", "settings.md", "solution-json.md", "tables.md", "errors.md"]
)
def test_reference_is_current(generate, name):
    made = generate.PAGES[name]()
    assert (generate.FOLDER / name).read_text(encoding="utf-8") == made, "run `make docs`"


def test_every_command_and_option_has_words(generate):
    import click

    for path, command in generate.commands(generate.cynosure, "cynosure"):
        assert command.help, path
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, f"{path} {option.name}"
        if not isinstance(command, click.Group):
            assert command.example.startswith(path), f"{path}: no example"


def test_verbs_say_the_same_in_the_list_and_on_their_own():
    from cynosure.faces.cli import VERBS, Verbs

    group = Verbs("cynosure")
    for verb, (_, text) in VERBS.items():
        command = group.get_command(None, verb)
        assert inspect.cleandoc(command.help).splitlines()[0] == text, verb


def test_every_setting_has_words():
    from cynosure.pipelines.run import SECTIONS, default_settings

    settings = default_settings()
    assert set(settings) == set(SECTIONS)
    for section in settings:
        for name, setting in settings.known(section).items():
            assert setting.text, f"{section}.{name} has no line in its docstring"


def test_the_schema_of_a_solution_holds_for_one(generate):
    """Check a record against the published schema; just the words of JSON schema that it uses."""
    from cynosure.solutions.solution import Solution

    schema = generate.solution_schema()
    kinds = {
        "string": str, "integer": int, "number": (int, float), "null": type(None), "array": list,
        "object": dict,
    }
    record = Solution("a.fits", epoch_yr=2020.5, tried=({"step": "x"},)).to_dict()
    assert set(schema["required"]) == set(record) == set(schema["properties"])
    for name, rule in schema["properties"].items():
        if "const" in rule:
            assert record[name] == rule["const"]
            continue
        types = rule["type"] if isinstance(rule["type"], list) else [rule["type"]]
        assert any(isinstance(record[name], kinds[t]) for t in types), name
        assert record[name] in rule.get("enum", [record[name]])


def blocks(page, language):
    """Return the blocks of a language of a page, in order, as (language, text)."""
    return re.findall(rf"```({language})\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def steps(name):
    """Return the (language, text) of what a page tells one to run, one command line a step."""
    found = []
    for language, text in blocks(ROOT / name, "console|python"):
        if language == "python":
            found.append((language, text))
            continue
        lines = [line for line in text.splitlines() if line.startswith("$ ")]
        assert len(lines) == len(text.splitlines())
        found += [(language, line[2:]) for line in lines]
    assert len(found) >= 2
    return found


@pytest.mark.slow
def test_snippets_run(tmp_path, monkeypatch, capsys):
    """README in a shell as a user would; of the quickstart what it adds, in this process."""
    from cynosure.faces import cli

    monkeypatch.chdir(tmp_path)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONWARNINGS": "error"}
    typed = steps("README.md")
    for language, text in typed:
        command = [sys.executable, "-c"] if language == "python" else ["bash", "-c"]
        done = subprocess.run(
            [*command, text], env=environment, capture_output=True, text=True, check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    more = [step for step in steps("docs/quickstart.md") if step not in typed]
    assert len(more) >= 5
    for language, text in more:
        if language == "python":
            exec(compile(text, "quickstart.md", "exec"), {})
        else:
            program, *arguments = shlex.split(text)
            assert program == "cynosure"
            assert cli.run(arguments) == 0, f"{text}\n{capsys.readouterr()}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


# What numpydoc holds a docstring to. A Parameters section is asked for only where it adds to the
# annotated signature, but what it says must fit the signature.
CHECKS = {
    "GL03": "double blank lines", "GL07": "order of sections", "GL08": "no docstring",
    "SS02": "no capital", "SS03": "no period", "SS05": "not imperative",
    "PR02": "unknown parameter", "PR10": "no space before the colon",
    "RT05": "no period after what is returned",
}


def public_names():
    """Return every public function and class of the package by its full name."""
    found = []
    for path in sorted((ROOT / "src" / "cynosure").rglob("*.py")):
        parts = path.relative_to(ROOT / "src").with_suffix("").parts
        if parts[-1] in ("__init__", "__main__"):
            continue
        name = ".".join(parts)
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", []):
            item = getattr(module, public)
            own = getattr(item, "__module__", None) == name
            if own and (inspect.isclass(item) or inspect.isfunction(item)):
                found.append(f"{name}.{public}")
    return found


def test_docstrings_of_public_names():
    from numpydoc.validate import validate

    wrong = []
    for name in public_names():
        wrong += [f"{name}: {code} {text}" for code, text in validate(name)["errors"]
                  if code in CHECKS]
    assert not wrong, "\n".join(wrong)
