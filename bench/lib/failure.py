"""Why something could not be measured."""


class Failure(Exception):
    """One line for the report; the other measurements go on."""
