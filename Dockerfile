# The job-queue door of cynosure:
#   docker build -t cynosure .
#   docker run -it -v /local/scratch:/local/scratch --network host --rm cynosure \
#       '{"task": "astrometer", "filename": "SAMPLEFILE.fits.fz"}'
# Files are looked for in /local/scratch; the reference catalogue is /local/scratch/refcat, or
# what the task's "refcat" or CYNOSURE_REFCAT say.
FROM python:3.12-slim AS build
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN python -m venv /opt/cynosure \
 && /opt/cynosure/bin/pip install --no-cache-dir '.[online,images]'

FROM python:3.12-slim
COPY --from=build /opt/cynosure /opt/cynosure
ENV PATH=/opt/cynosure/bin:$PATH \
    CYNOSURE_SCRATCH=/local/scratch \
    NUMBA_CACHE_DIR=/var/cache/cynosure \
    MPLCONFIGDIR=/var/cache/cynosure \
    XDG_CACHE_HOME=/var/cache/cynosure
# Compile the kernels and list the fonts once, here, so that no run waits for it; any user of the
# container may write there.
RUN mkdir -p /var/cache/cynosure /local/scratch \
 && cynosure doctor --compile \
 && chmod -R a+rwX /var/cache/cynosure
WORKDIR /local/scratch
ENTRYPOINT ["cynosure", "task"]
