# What CI and the GitHub workflow run. PYTHON names the interpreter: make test PYTHON=.venv/bin/python
PYTHON ?= python
UV ?= $(PYTHON) -m uv

# A part of the tests that touches the dependencies with a lower bound: transformers (configuration, processor,
# pipeline), typer and rich (command line), av (decoding), datasets, h5py and matplotlib. The ONNX export needs a newer
# torch than the lowest.
SMOKE = tests/core/test_configuration_audioclip.py tests/core/test_processing_ave_clip.py \
	tests/core/test_pipeline_ave_clip.py tests/test_cli.py tests/test_cli_outputs.py \
	tests/data/test_ave.py tests/data/test_custom.py tests/data/test_h5.py tests/data/test_storage.py \
	tests/outputs/test_timeline.py tests/training/test_arguments.py

.PHONY: style quality types docs test lowest lowest-environment lowest-tests

style:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

quality:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(MAKE) types

types: # of the package; pyproject.toml says which libraries count as untyped
	$(PYTHON) -m pyrefly check --python-interpreter-path "$$(command -v $(PYTHON))"

docs: # warnings, such as links that lead nowhere, are errors
	PATH="$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$$PATH" NO_MKDOCS_2_WARNING=1 \
		$(PYTHON) -m mkdocs build --strict --quiet

test:
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2

# The lowest version of every direct dependency that setup.cfg allows, in an environment of its own. uv, because pip
# can only resolve upwards.
lowest: lowest-environment lowest-tests

lowest-environment:
	$(UV) venv --quiet --clear --python $(PYTHON) .venv-lowest
	$(UV) pip install --quiet --python .venv-lowest --resolution lowest-direct --editable ".[test]"

lowest-tests:
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n 2 $(SMOKE)
