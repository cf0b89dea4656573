"""`llama2 doctor`: what this machine has, what is missing, what to do, how long all will take.

Looking at the machine (`machine`) is kept apart from judging what was seen (`findings`), so that
every judgement can be tested on machines we do not have.
"""

from pathlib import Path

from llama2_lib.doctor.findings import Finding, findings
from llama2_lib.doctor.machine import Machine, inspect_machine

__all__ = ["Finding", "Machine", "findings", "inspect_machine", "main", "report"]


def report(all_findings: list[Finding]) -> str:
    """Return the table, one finding a line, advice beneath, and a verdict."""
    width = max(len(finding.name) for finding in all_findings)
    lines = []
    for finding in all_findings:
        lines.append(f"{finding.status:<4}  {finding.name:<{width}}  {finding.value}")
        if finding.advice:
            lines.append(f"{'':<4}  {'':<{width}}  -> {finding.advice}")
    failed = [finding.name for finding in all_findings if finding.status == "fail"]
    verdict = "The course can run here."
    if failed:
        verdict = f"The course cannot run here yet: {', '.join(failed)}. Follow the arrows."
    return "\n".join([*lines, "", verdict])


def main(artifacts: Path | None = None) -> int:
    """Print the report; return the exit status, 1 when the course could not run."""
    all_findings = findings(inspect_machine(artifacts))
    print(report(all_findings))
    return int(any(finding.status == "fail" for finding in all_findings))
