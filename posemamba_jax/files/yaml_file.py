"""Reads YAML files of a bounded size, in which a key is given once."""

from pathlib import Path
from typing import Any

import yaml

from posemamba_jax.errors import DataError, as_word, describe_error
from posemamba_jax.files.reading import read_whole

# Configurations and skeletons have a hundred lines.
MAX_YAML_BYTES = 1 << 20


class UniqueKeyLoader(yaml.SafeLoader):
    """Reads values as YAML's own rules say, and refuses a key that is given twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node, lines = super().compose_mapping_node(anchor), {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in lines:
                name, first = as_word(key.value), lines[key.value]
                problem = f"{name} is given twice, in line {first} and in line {line}; keep one"
                raise yaml.YAMLError(problem)
            lines[key.value] = line
        return node


class TextLoader(UniqueKeyLoader):
    """Leaves scalars as the text that was written; plain nulls are None."""

    yaml_implicit_resolvers = {
        first: [pair for pair in resolvers if pair[0].endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    # Other tags (`!!set`) are refused, and so is what refers to itself.
    yaml_constructors = {
        "tag:yaml.org,2002:null": yaml.SafeLoader.construct_yaml_null,
        "tag:yaml.org,2002:str": yaml.SafeLoader.construct_scalar,
        "tag:yaml.org,2002:seq": yaml.SafeLoader.construct_sequence,
        "tag:yaml.org,2002:map": yaml.SafeLoader.construct_mapping,
        None: yaml.SafeLoader.construct_undefined,
    }


def read_yaml(path: Path, loader: type[yaml.SafeLoader] = UniqueKeyLoader) -> Any:
    """Reads a file that a user names.

    Args:
      path: the file.
      loader: says what a scalar is.

    Raises:
      DataError: the file cannot be read, is too large, is not YAML, or gives a key twice.
    """
    content = read_whole(path, MAX_YAML_BYTES)
    try:
        return yaml.load(content.decode("utf-8"), loader)
    except UnicodeDecodeError as error:
        problem = f"cannot be read: {error}"
    except (ValueError, LookupError, AttributeError, RecursionError, yaml.YAMLError) as error:
        problem = f"not valid YAML: {describe_error(error)}"
    raise DataError(f"{as_word(path)}: {problem}")
