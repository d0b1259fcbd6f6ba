"""Prints the reference as the code has it now, or writes it.

python -m docs.reference           # print the page
python -m docs.reference --write   # put it in its place
"""

from __future__ import annotations

import argparse

from docs.reference.page import PAGE, page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help=f"write docs/{PAGE.name}")
    made = page(PAGE.read_text(encoding="utf-8"))
    if parser.parse_args().write:
        PAGE.write_text(made, encoding="utf-8")
    else:
        print(made, end="")


if __name__ == "__main__":
    main()
