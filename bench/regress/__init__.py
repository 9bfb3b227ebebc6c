"""The release sentinel: did a new release of a package get slower, hungrier or wrong?

    source --overlay--> Overlay --measure--> Release --judge--> Verdict --outputs--> terminal, JSON, JUnit, Markdown
                                    |
                                 history (JSON lines), from which ``watch`` takes its baseline

A **release** is measured on its own, in fresh processes that see an overlay folder before everything else; nothing is
installed into the environment that runs the check. A verdict compares two releases measured by the same checks.
``bisect`` measures only as many releases as it must.
"""
