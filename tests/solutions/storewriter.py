"""Add solutions to a store one by one, in a process of its own: URL, first number, how many."""

import sys

from headerlets import make_headerlet, variants

from cynosure.solutions.store.intake import read_headerlet
from cynosure.solutions.store.store import Store


def main():
    url, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    data = make_headerlet("j00000000", chips=1)
    with Store(url) as store:
        print("ready", flush=True)
        names = (f"j{i:08d}" for i in range(first, first + count))
        new = sum(store.add([read_headerlet(d)]).new for d in variants(data, names))
    print(new)


if __name__ == "__main__":
    main()
