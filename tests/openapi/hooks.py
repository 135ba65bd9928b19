"""For scripts/schemathesis: what openapi.yaml cannot say."""

import schemathesis


@schemathesis.hook
def filter_query(context, query):
    """`page` and `cursor` are good parameters, but not together."""
    return not (query and "page" in query and "cursor" in query)
