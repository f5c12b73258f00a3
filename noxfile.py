# SPDX-License-Identifier: Apache-2.0
"""
All tests on every supported Airflow and Python, or one of them.

``nox`` runs all, ``nox -s "tests(python='3.12', airflow='3.1')"`` one of them, and ``nox -l`` lists them.

What an interpreter is missing for is left out. ``scripts/dev.py`` needs no nox, and uses the Python it is run with.
"""

import nox

nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True

#: Airflow version -> the Pythons it runs on, of those that this provider does.
VERSIONS = {
    "2.11": ("3.11", "3.12"),
    "3.0": ("3.11", "3.12"),
    "3.1": ("3.11", "3.12", "3.13"),
    "3.2": ("3.11", "3.12", "3.13"),
    "3.3": ("3.11", "3.12", "3.13"),
}


@nox.session
@nox.parametrize("python,airflow", [(python, airflow) for airflow, pythons in VERSIONS.items() for python in pythons])
def tests(session: nox.Session, airflow: str) -> None:
    """Run the tests, or those that are named after ``--``."""
    extra = "sandbox,test,browser" if airflow == max(VERSIONS) else "sandbox,test"
    session.install("-c", f"constraints/airflow-{airflow}.txt", "-e", f".[{extra}]")
    if session.posargs:
        session.run("pytest", *session.posargs)
        return
    session.run("pytest", "-n", "6", "tests/unit", "tests/contract")
    session.run("pytest", "-n", "2", "tests/integration")
    session.run("pytest", "tests/browser", success_codes=[0, 5])
