"""What may stand in the place of a database file. Each function changes the file that it is given."""

import os
import sqlite3


def execute(*statements):
    """A change by SQL statements."""

    def change(file):
        with sqlite3.connect(file) as connection:
            for statement in statements:
                connection.execute(statement)

    return change


def directory(file):
    file.unlink()
    (file / "x").mkdir(parents=True)


def fifo(file):
    file.unlink()
    os.mkfifo(file)


def dangling(file):
    file.unlink()
    file.symlink_to(file.parent / "nothing")
