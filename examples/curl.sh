#!/usr/bin/env bash
# The endpoint with curl. Local:    bash examples/curl.sh
#                         by ngrok: URL=https://... KEY=... bash examples/curl.sh
# KEY is needed where the server has one. Each call below can also be pasted by itself.
set -euo pipefail
URL=${URL:-http://127.0.0.1:8000}
KEY=${KEY:-none}

echo "# 1. a question, and the whole reply at once"
curl -sS --fail-with-body "$URL/phase1/reasoning" -H "Authorization: Bearer $KEY" \
  -d '{"prompt": "Calculate 23 + 15 + 8", "temperature": 0}'

echo; echo "# 2. the same as a stream of events, as the model thinks (-N: curl must not hold it back)"
curl -sS --fail-with-body -N "$URL/phase1/reasoning" -H "Authorization: Bearer $KEY" \
  -d '{"prompt": "Calculate 23 + 15 + 8", "temperature": 0, "stream": true}'

echo "# 3. eight samples that vote"
curl -sS --fail-with-body "$URL/phase1/reasoning" -H "Authorization: Bearer $KEY" \
  -d '{"prompt": "Calculate 417 + 85 + 9", "n": 8, "seed": 1, "include_reasoning": false}'

echo; echo "# 4. the bare text"
curl -sS --fail-with-body "$URL/phase1/reasoning" -H "Authorization: Bearer $KEY" \
  -d '{"prompt": "Calculate 7 + 8 + 9", "temperature": 0, "format": "text"}'

echo; echo "# 5. the chat completions API, which many programs speak"
curl -sS --fail-with-body "$URL/v1/chat/completions" -H "Authorization: Bearer $KEY" \
  -d '{"messages": [{"role": "user", "content": "Calculate 23 + 15 + 8"}], "temperature": 0}'
echo
