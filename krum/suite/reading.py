"""Reading what people write: YAML files, checked against experiments/schema.yaml, and the values of a command line."""

import re
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import jsonschema
import yaml

from krum.errors import InputError, located, unknown

PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = PACKAGE / "experiments"  # inside an installed package; of a checkout, beside it
EXPERIMENTS = INSTALLED if INSTALLED.is_dir() else PACKAGE.parent / "experiments"


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses a key given twice, and reads 1e-3 as a number.

    It admits texts, numbers, true and false, null, lists and mappings, and nothing else.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if not isinstance(key, str) or keys.count(key) > 1:
                what = "is given twice" if isinstance(key, str) else "is not a text"
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} {what}", node.start_mark)
        return super().construct_mapping(node, deep)

    def refuse(self, node: yaml.Node) -> NoReturn:
        """What YAML would make a date, a set or bytes."""
        kind = node.tag.rpartition(":")[2]
        raise yaml.constructor.ConstructorError(None, None, f"found a {kind}; a text needs quotes", node.start_mark)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


for _kind in ("timestamp", "binary", "set", "omap", "pairs"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.refuse)


def parse(text: str) -> Any:
    """The value of a YAML text: a file's, or a parameter's on the command line. Raises InputError."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"not valid YAML: {error}") from None


def read_checked(path: Path, definition: str) -> dict[str, Any]:
    """A YAML file that fits one of schema.yaml's definitions; InputError otherwise."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    with located(str(path)):
        document = parse(text)
    check_structure(document, definition, str(path))
    return document


@cache
def _validator(definition: str) -> jsonschema.Draft202012Validator:
    schema = yaml.safe_load((EXPERIMENTS / "schema.yaml").read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator({**schema, "$ref": f"#/$defs/{definition}"})


def check_structure(document: Any, definition: str, where: str) -> None:
    """Check against one of schema.yaml's definitions; InputError for the error nearest the document's top."""
    error = min(_validator(definition).iter_errors(document), key=lambda each: len(each.path), default=None)
    if error is None:
        return
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
    where = f"{where}: {place}" if place else where
    described = error.schema.get("properties", {})
    if error.validator == "additionalProperties":
        stranger = next(key for key in error.instance if key not in described)
        raise InputError(f"{where}: {unknown('key', stranger, described)}")
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        raise InputError(f"{where}: {missing} is missing; it is {described[missing]['description']}")
    raise InputError(f"{where}: found {error.instance!r:.80}; give {error.schema.get('description', error.message)}")
