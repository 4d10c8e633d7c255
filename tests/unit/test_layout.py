import subprocess
import sys


def test_the_standard_librarys_platform_answers_from_the_repositorys_root(repository):
    run = subprocess.run(
        [sys.executable, "-c", "import platform, refocus; print(platform.python_version(), platform.__file__)"],
        cwd=repository, capture_output=True, text=True, check=True,
    )  # fmt: skip
    version, file = run.stdout.split()
    assert version == ".".join(map(str, sys.version_info[:3]))
    assert not file.startswith(str(repository))
    assert not (repository / "platform" / "__init__.py").exists()


def test_importing_the_package_imports_neither_ray_nor_torch(repository):
    code = "import sys, refocus, refocus.client, refocus.cli; print({'ray', 'torch', 'boto3'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_jobs_are_executable_and_short(repository):
    jobs = sorted((repository / "jobs").glob("*.py"))
    assert jobs
    for job in jobs:
        assert job.stat().st_mode & 0o111, f"{job.name} is not executable"
        assert job.read_text().startswith("#!/usr/bin/env python")
        assert len(job.read_text().splitlines()) < 40, f"{job.name} has 40 lines or more"
