"""Conversations, and each of them as the published formats of the named chat templates have it."""


def system(content):
    return {"role": "system", "content": content}


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def call(*arguments, content="", **more):
    """A message with a call of `get_weather` for each of `arguments`."""
    calls = [
        {"id": f"call{number:05}", "type": "function", "function": {"name": "get_weather", "arguments": given}}
        for number, given in enumerate(arguments, start=1)
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls, **more}


def result(content, number=1):
    return {"role": "tool", "content": content, "tool_call_id": f"call{number:05}", "name": "get_weather"}


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TOOL_JSON = (
    '{"type": "function", "function": {"name": "get_weather", "description": "Get the weather.", '
    '"parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}'
)
TALK = [system("Be brief."), user("Hi"), assistant("Hello!"), user("2+2?"), assistant("4")]
TOOL_TALK = [user("Rome?"), call({"city": "Rome"}), result('{"t": 21}'), assistant("Warm.")]
THOUGHTFUL = [
    user("Hi"),
    assistant("Hello!", reasoning_content="greet"),
    user("2+2?"),
    assistant("4", reasoning_content="add"),
]

TALKS = {
    "alpaca": "<s>Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello!</s>\n\n"
    "### Instruction:\n2+2?\n\n### Response:\n4</s>\n\n",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n",
    "command_r": "<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be brief.<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Hello!<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>2+2?<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>4<|END_OF_TURN_TOKEN|>",
    "deepseek_r1": "<s>Be brief.<｜User｜>Hi<｜Assistant｜>Hello!<｜end▁of▁sentence｜>"
    "<｜User｜>2+2?<｜Assistant｜>4<｜end▁of▁sentence｜>",
    "deepseek_v3": "<s>Be brief.<｜User｜>Hi<｜Assistant｜>Hello!<｜end▁of▁sentence｜>"
    "<｜User｜>2+2?<｜Assistant｜>4<｜end▁of▁sentence｜>",
    "exaone3": "[|system|]Be brief.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello![|endofturn|]\n"
    "[|user|]2+2?\n[|assistant|]4[|endofturn|]\n",
    "gemma": "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n"
    "<start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n4<end_of_turn>\n",
    "gemma3": "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n"
    "<start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n4<end_of_turn>\n",
    "gpt_oss": "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
    "Knowledge cutoff: 2024-06\n\nReasoning: medium\n\n# Valid channels: analysis, commentary, final. "
    "Channel must be included for every message.<|end|>"
    "<|start|>developer<|message|># Instructions\n\nBe brief.<|end|><|start|>user<|message|>Hi<|end|>"
    "<|start|>assistant<|channel|>final<|message|>Hello!<|end|><|start|>user<|message|>2+2?<|end|>"
    "<|start|>assistant<|channel|>final<|message|>4<|return|>",
    "granite3": "<|start_of_role|>system<|end_of_role|>Be brief.<|end_of_text|>\n"
    "<|start_of_role|>user<|end_of_role|>Hi<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>Hello!<|end_of_text|>\n"
    "<|start_of_role|>user<|end_of_role|>2+2?<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>4<|end_of_text|>\n",
    "llama2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello! </s><s>[INST] 2+2? [/INST] 4 </s>",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n4<|eot_id|>",
    "llama3_tools": "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n4<|eot_id|>",
    "llama4": "<s><|header_start|>system<|header_end|>\n\nBe brief.<|eot|>"
    "<|header_start|>user<|header_end|>\n\nHi<|eot|>"
    "<|header_start|>assistant<|header_end|>\n\nHello!<|eot|><|header_start|>user<|header_end|>\n\n2+2?<|eot|>"
    "<|header_start|>assistant<|header_end|>\n\n4<|eot|>",
    "metharme": "<s><|system|>Be brief.<|user|>Hi<|model|>Hello!</s><|user|>2+2?<|model|>4</s>",
    "mistral_v1": "<s> [INST] Be brief.\n\nHi [/INST] Hello!</s> [INST] 2+2? [/INST] 4</s>",
    "mistral_v3": "<s>[INST] Be brief.\n\nHi[/INST] Hello!</s>[INST] 2+2?[/INST] 4</s>",
    "mistral_v7": "<s>[SYSTEM_PROMPT] Be brief.[/SYSTEM_PROMPT][INST] Hi[/INST] Hello!</s>[INST] 2+2?[/INST] 4</s>",
    "mistral_v7_tekken": "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]Hi[/INST]Hello!</s>[INST]2+2?[/INST]4</s>",
    "olmo2": "<s><|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\nHello!</s>\n<|user|>\n2+2?\n<|assistant|>\n4</s>",
    "phi3": "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello!<|end|>\n"
    "<|user|>\n2+2?<|end|>\n<|assistant|>\n4<|end|>\n",
    "phi4": "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>Hi<|im_end|>"
    "<|im_start|>assistant<|im_sep|>Hello!<|im_end|><|im_start|>user<|im_sep|>2+2?<|im_end|>"
    "<|im_start|>assistant<|im_sep|>4<|im_end|>",
    "tulu": "<|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\nHello!</s>\n<|user|>\n2+2?\n<|assistant|>\n4</s>",
    "vicuna": "<s>Be brief. USER: Hi ASSISTANT: Hello!</s>USER: 2+2? ASSISTANT: 4</s>",
    "zephyr": "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello!</s>\n"
    "<|user|>\n2+2?</s>\n<|assistant|>\n4</s>\n",
}
TALKS["granite4"] = TALKS["granite3"]
TALKS["qwen3"] = TALKS["chatml"].replace("\n4<", "\n<think>\n\n</think>\n\n4<")
TALKS |= dict.fromkeys(("qwen2_5", "qwen3_instruct", "smollm2"), TALKS["chatml"])

QWEN_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{TOOL_JSON}\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML "
    'tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
)
QWEN_CALL = (
    "<|im_start|>user\nRome?<|im_end|>\n<|im_start|>assistant\n<tool_call>\n"
    '{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>\n'
    '<|im_start|>user\n<tool_response>\n{"t": 21}\n</tool_response><|im_end|>\n<|im_start|>assistant\n'
)
LLAMA_TOOLS = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best "
    'answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of argument '
    "name and its value}.Do not use variables.\n\n"
    '{\n    "type": "function",\n    "function": {\n        "name": "get_weather",\n'
    '        "description": "Get the weather.",\n        "parameters": {\n            "type": "object",\n'
    '            "properties": {\n                "city": {\n                    "type": "string"\n                }\n'
    '            },\n            "required": [\n                "city"\n            ]\n        }\n    }\n}\n\nRome?'
)
MISTRAL_CALL = '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Rome"}, "id": "call00001"}]</s>'
TOOL_TALKS = {
    "gpt_oss": TALKS["gpt_oss"].split("<|end|>")[0]
    + "\nCalls to these tools must go to the commentary channel: 'functions'.<|end|><|start|>developer<|message|>"
    "# Tools\n\n## functions\n\nnamespace functions {\n\n// Get the weather.\n"
    "type get_weather = (_: {\ncity: string,\n}) => any;\n\n} // namespace functions<|end|>"
    "<|start|>user<|message|>Rome?<|end|>"
    "<|start|>assistant to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>"
    '{"city": "Rome"}<|call|>'
    '<|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>{"t": 21}<|end|>'
    "<|start|>assistant<|channel|>final<|message|>Warm.<|return|>",
    "granite4": "<|start_of_role|>system<|end_of_role|>You are a helpful assistant with access to the following tools. "
    "You may call one or more tools to assist with the user query.\n\nYou are provided with function signatures within "
    f"<tools></tools> XML tags:\n<tools>\n{TOOL_JSON}\n</tools>\n\nFor each tool call, return a json object with "
    'function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, '
    '"arguments": <args-json-object>}\n</tool_call>. If a tool does not exist in the provided list of tools, notify '
    "the user that you do not have the ability to fulfill the request.<|end_of_text|>\n"
    "<|start_of_role|>user<|end_of_role|>Rome?<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|><tool_call>\n"
    '{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call><|end_of_text|>\n'
    '<|start_of_role|>user<|end_of_role|>\n<tool_response>\n{"t": 21}\n</tool_response><|end_of_text|>\n'
    "<|start_of_role|>assistant<|end_of_role|>Warm.<|end_of_text|>\n",
    "llama3_tools": "<s><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
    f"<|start_header_id|>user<|end_header_id|>\n\n{LLAMA_TOOLS}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
    '{"name": "get_weather", "parameters": {"city": "Rome"}}<|eot_id|>'
    '<|start_header_id|>ipython<|end_header_id|>\n\n"{\\"t\\": 21}"<|eot_id|>'
    "<|start_header_id|>assistant<|end_header_id|>\n\nWarm.<|eot_id|>",
    "llama4": f"<s><|header_start|>user<|header_end|>\n\n{LLAMA_TOOLS}<|eot|>"
    "<|header_start|>assistant<|header_end|>\n\n<|python_start|><|python_end|>"
    '{"name": "get_weather", "parameters": {"city": "Rome"}}<|eot|>'
    '<|header_start|>ipython<|header_end|>\n\n"{\\"t\\": 21}"<|eot|>'
    "<|header_start|>assistant<|header_end|>\n\nWarm.<|eot|>",
    "mistral_v3": f"<s>[AVAILABLE_TOOLS] [{TOOL_JSON}][/AVAILABLE_TOOLS][INST] Rome?[/INST]{MISTRAL_CALL}"
    '[TOOL_RESULTS] {"content": {"t": 21}, "call_id": "call00001"}[/TOOL_RESULTS] Warm.</s>',
    "mistral_v7": f"<s>[AVAILABLE_TOOLS] [{TOOL_JSON}][/AVAILABLE_TOOLS][INST] Rome?[/INST]{MISTRAL_CALL}"
    '[TOOL_RESULTS] call00001[TOOL_CONTENT] {"t": 21}[/TOOL_RESULTS] Warm.</s>',
    "mistral_v7_tekken": f"<s>[AVAILABLE_TOOLS][{TOOL_JSON}][/AVAILABLE_TOOLS][INST]Rome?[/INST]"
    f"{MISTRAL_CALL.replace('] [', '][')}"
    '[TOOL_RESULTS]call00001[TOOL_CONTENT]{"t": 21}[/TOOL_RESULTS]Warm.</s>',
    "qwen2_5": "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.\n\n"
    f"{QWEN_TOOLS}{QWEN_CALL}Warm.<|im_end|>\n",
    "qwen3": f"<|im_start|>system\n{QWEN_TOOLS}{QWEN_CALL}<think>\n\n</think>\n\nWarm.<|im_end|>\n",
    "qwen3_instruct": f"<|im_start|>system\n{QWEN_TOOLS}{QWEN_CALL}Warm.<|im_end|>\n",
}
THOUGHTS = {
    "deepseek_r1": "<s><｜User｜>Hi<｜Assistant｜>Hello!<｜end▁of▁sentence｜>"
    "<｜User｜>2+2?<｜Assistant｜><think>\nadd\n</think>\n\n4<｜end▁of▁sentence｜>",
    "gpt_oss": TALKS["gpt_oss"]
    .replace("<|start|>developer<|message|># Instructions\n\nBe brief.<|end|>", "")
    .replace(
        "<|start|>assistant<|channel|>final<|message|>4",
        "<|start|>assistant<|channel|>analysis<|message|>add<|end|><|start|>assistant<|channel|>final<|message|>4",
    ),
    "qwen3": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
    "<|im_start|>user\n2+2?<|im_end|>\n"
    "<|im_start|>assistant\n<think>\nadd\n</think>\n\n4<|im_end|>\n",
}
