"""For scripts/schemathesis: two rules that openapi.yaml cannot state."""

import schemathesis


@schemathesis.hook
def before_call(context, case, kwargs):
    # `page` and `cursor` are valid parameters, but not together.
    positive = case.meta is None or case.meta.generation.mode.is_positive
    if positive and case.query and "cursor" in case.query:
        case.query.pop("page", None)
    # 5.0 is an integer in JSON Schema, but not in this API.
    if isinstance(case.body, dict):
        amount = case.body.get("amount_cents")
        if isinstance(amount, float) and amount.is_integer():
            case.body["amount_cents"] = int(amount)
