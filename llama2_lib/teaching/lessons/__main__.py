"""`python -m llama2_lib.teaching.lessons COMMAND [NAMES]`."""

import sys

import tyro

from llama2_lib.teaching.lessons import both, build, check, compare, lab, slides, student


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return 0, 1 where a notebook is at fault, or 2 for a user's mistake."""
    commands = {
        command.__name__: command for command in (build, check, student, both, compare, lab, slides)
    }
    try:
        faults = tyro.extras.subcommand_cli_from_dict(
            commands, args=arguments, prog="lessons", description=__doc__
        )
    except (ValueError, OSError) as error:  # the user's to fix: no traceback
        print(f"lessons: {error}", file=sys.stderr)
        return 2
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
