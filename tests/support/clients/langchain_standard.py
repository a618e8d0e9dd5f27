"""LangChain's own integration tests of a chat model, on the server at $URL with the key $KEY.

pytest tests/support/clients/langchain_standard.py, in an environment with langchain-openai,
langchain-tests and pytest-asyncio.
"""

import os

from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestStandard(ChatModelIntegrationTests):
    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        return {
            "model": "tiny",
            "base_url": f"{os.environ['URL']}/v1",
            "api_key": os.environ["KEY"],
            "max_tokens": 100,
            "temperature": 0,
            "max_retries": 0,
            "stream_usage": True,  # with a base_url of one's own it has to be asked for
        }

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False

    @property
    def supports_json_mode(self) -> bool:
        return False
