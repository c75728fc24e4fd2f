#!/bin/sh
# Install the torch version of a constraints file: the CPU build where there is no accelerator.
#
#   install-torch.sh PYTHON CONSTRAINTS
#
# PyPI's torch for Linux carries several GB of CUDA libraries. Without an accelerator, a wheel that pip was told of
# (PIP_FIND_LINKS) comes first, then PyTorch's own CPU index, which uv knows by name; PyPI's build is the last resort.
set -eu
python=$1
torch=$(grep '^torch==' "$2")

if [ "$(uname)" != Linux ] || command -v nvidia-smi >/dev/null 2>&1 || [ -e /dev/kfd ]; then
    exec "$python" -m pip install --quiet "$torch"
fi
if "$python" -m pip install --quiet --no-index --no-deps "$torch" 2>/dev/null; then
    exit 0
fi
uv=$(grep '^uv==' "$2")
if "$python" -m pip install --quiet "$uv" &&
    "$python" -m uv pip install --quiet --python "$python" --torch-backend cpu "$torch"; then
    exit 0
fi
echo "no CPU build of $torch could be installed; taking PyPI's build, which is several GB" >&2
exec "$python" -m pip install --quiet "$torch"
