#!/bin/sh
# Serve starts this program as HAProxy (RAY_SERVE_HAPROXY_BINARY_PATH).
exec "${MEDRAY_PYTHON:-python3}" -P "$(dirname "$(readlink -f "$0")")/haproxy_launcher.py" "$@"
