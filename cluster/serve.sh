#!/usr/bin/env bash
# The command of the image's stage `serve`: serves releases of a mounted folder (or s3://) over HTTP to clients with a token.
#   MEDRAY_RELEASES        the releases to serve, separated by spaces: cancer@best findings@2
#   MEDRAY_STORAGE_PATH    where they are stored (/releases, or s3://BUCKET/PREFIX)
#   MEDRAY_TOKENS_FILE     a file with the SHA-256 of one token per line; or
#   MEDRAY_TOKENS_SHA256   the lines of such a file, from a secret; or
#   MEDRAY_OPEN_TO_ALL=1   serve without tokens everyone who reaches the port
set -euo pipefail

if [ -z "${MEDRAY_RELEASES:-}" ]; then
  echo "medray-serve: MEDRAY_RELEASES is empty; name a release, such as cancer@best" >&2
  exit 1
fi
read -ra releases <<<"$MEDRAY_RELEASES"
options=(--host 0.0.0.0 --port "${PORT:-7860}" --storage-path "${MEDRAY_STORAGE_PATH:-/releases}")
if [ -n "${MEDRAY_TOKENS_FILE:-}" ]; then
  options+=(--tokens-file "$MEDRAY_TOKENS_FILE")
elif [ -n "${MEDRAY_TOKENS_SHA256:-}" ]; then
  file=$(mktemp)
  printf '%s\n' "$MEDRAY_TOKENS_SHA256" | tr ', ' '\n' >"$file"
  options+=(--tokens-file "$file")
elif [ "${MEDRAY_OPEN_TO_ALL:-}" = 1 ]; then
  options+=(--open-to-all)
else
  echo "medray-serve: other machines reach the port, and no token is set; set MEDRAY_TOKENS_FILE or MEDRAY_TOKENS_SHA256, or serve everyone with MEDRAY_OPEN_TO_ALL=1" >&2
  exit 1
fi
exec medray serve "${releases[@]}" "${options[@]}"
