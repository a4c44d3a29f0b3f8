"""The OpenAPI document of one service, with its own keys and types, context, all statuses and working examples.

FastAPI describes the routes; the rest is filled in here from the declaration of the ranking.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.features import plan_of
from headrace.serving.messages import CANDIDATES_MAX, REQUEST_ID_CHARS_MAX
from headrace.serving.queries import QueryRules, RankingSpec

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1, "maxLength": 512}
INTEGER: Schema = {"type": "integer", "format": "int64", "minimum": -(2**63), "maximum": 2**63 - 1}
ANY_VALUE: Schema = {"type": ["number", "string", "boolean", "null"]}
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
STATUSES = {
    "401": "no known API key",
    "403": "the API key may not do this",
    "404": "no such view",
    "408": "the body came too slowly",
    "409": "the model version that was asked for is not in memory; Retry-After where it may come",
    "413": "the body is too long",
    "422": "the request is wrong; `field` says where",
    "429": "too many requests; Retry-After",
    "500": "the model or the service failed",
    "503": "no model is live, the store does not answer, or the deadline passed; Retry-After",
}
MODEL_STATUSES = ("408", "409", "413", "422", "429", "500", "503")
STATUSES_OF = {
    "/v1/rank": MODEL_STATUSES,
    "/v1/score": MODEL_STATUSES,
    "/v1/features/{view}/{key}": ("404", "422", "429", "500", "503"),
    "/v1/model": ("429", "503"),
    "/v1/report": ("429",),
    "/metrics": ("429",),
    "/healthz": (),
    "/readyz": (),
}
HEADERS: list[Schema] = [
    {
        "name": "X-Request-Id",
        "in": "header",
        "required": False,
        "description": "Id of the request, for answers and logs; made when absent.",
        "schema": {"type": "string", "pattern": f"^[!-~]{{1,{REQUEST_ID_CHARS_MAX}}}$"},
    },
    {
        "name": "X-Request-Timeout-Ms",
        "in": "header",
        "required": False,
        "description": "Deadline from the arrival of the body.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 60_000},
    },
]


@dataclass(frozen=True, slots=True)
class Contract:
    """The requests that one service accepts.

    Args:
        spec: its ranking.
        logged: column of the impression that a request's context fills -> (schema, whether it is required).
        asks_for_keys: whether requests need an API key.
    """

    spec: RankingSpec
    logged: Mapping[str, tuple[Schema, bool]] = field(default_factory=dict)
    asks_for_keys: bool = False

    def fill(self, document: Schema) -> Schema:
        """Complete FastAPI's `document` in place, and return it."""
        paths = document["paths"]
        for path, statuses in STATUSES_OF.items():
            for operation in paths[path].values():
                responses = operation["responses"]
                guarded = ("401", "403") if self.asks_for_keys and path not in OPEN_PATHS else ()
                for status in (*guarded, *statuses):
                    responses[status] = _error(STATUSES[status])
                if not guarded and self.asks_for_keys:
                    operation["security"] = []
        for name in ("rank", "score"):
            operation = paths[f"/v1/{name}"]["post"]
            operation["parameters"] = HEADERS
            content = operation["requestBody"]["content"]["application/json"]
            self._fill_body(content["schema"])
            content["example"] = self.example()
        self._fill_features(paths["/v1/features/{view}/{key}"]["get"])
        if self.asks_for_keys:
            document["components"]["securitySchemes"] = {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            }
            document["security"] = [{"key": []}, {"bearer": []}]
        return document

    def example(self) -> Schema:
        """Return a request body that the service accepts."""
        body: Schema = {
            "entity": {name: _example(self._key(name)) for name in self.spec.entity},
            "candidates": [_example(self._key(self.spec.candidate), number) for number in (1, 2)],
        }
        needed = {name: schema for name, (schema, is_needed) in self._context().items() if is_needed}
        if needed:
            body["context"] = {name: _example(schema) for name, schema in needed.items()}
        return body

    def _key(self, name: str) -> Schema:
        is_text = QueryRules(self.spec).text_keys.get(name)
        return {"anyOf": [INTEGER, TEXT]} if is_text is None else TEXT if is_text else INTEGER

    def _context(self) -> dict[str, tuple[Schema, bool]]:
        """Return name -> (schema, whether it is required) for the values of a context."""
        keys = {*self.spec.entity, self.spec.candidate}
        of_model = {name: (self.logged.get(name, (ANY_VALUE, True))[0], True) for name in self.spec.context}
        return {name: entry for name, entry in self.logged.items() if name not in keys} | of_model

    def _fill_body(self, schema: Schema) -> None:
        fields = schema["properties"]
        names = list(self.spec.entity)
        fields["entity"] = {
            "type": "object",
            "description": "The entity that candidates are ranked for.",
            "properties": {name: self._key(name) for name in names},
            "required": names,
            "additionalProperties": False,
        }
        fields["candidates"] = {
            "type": "array",
            "description": f"Keys of the candidates: {self.spec.candidate}.",
            "items": self._key(self.spec.candidate),
            "minItems": 1,
            "maxItems": CANDIDATES_MAX,
        }
        context = self._context()
        needed = [name for name, (_, is_needed) in context.items() if is_needed]
        fields["context"] = {
            **fields["context"],
            "properties": {name: value for name, (value, _) in context.items()},
            **({"required": needed} if needed else {}),
        }
        if needed:
            schema["required"] = [*schema["required"], "context"]

    def _fill_features(self, operation: Schema) -> None:
        plans = [plan_of(view) for view in self.spec.learner.views]
        for parameter in operation["parameters"]:
            if parameter["name"] == "view":
                parameter["schema"] = {"type": "string", "enum": [plan.name for plan in plans]}
                parameter["example"] = plans[0].name
            else:
                parameter["description"] = "; ".join(f"{plan.name}: {'/'.join(plan.entity)}" for plan in plans)
                parameter["example"] = "/".join(str(_example(self._key(name))) for name in plans[0].entity)


def _error(description: str) -> Schema:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}}
    return {"description": description, "content": content}


def _example(schema: Schema, number: int = 1) -> Any:
    """Return a value that is valid under `schema`."""
    chosen = schema.get("anyOf", [schema])[0]
    if "enum" in chosen or "const" in chosen:
        return chosen.get("const", chosen.get("enum", [None])[0])
    kinds = chosen.get("type", "number")
    kind = kinds[0] if isinstance(kinds, list) else kinds
    if kind == "string":
        return {"date-time": "2026-03-01T12:00:00Z"}.get(chosen.get("format", ""), f"example-{number}")
    return {"integer": number, "number": 0.5, "boolean": True, "null": None, "array": [], "object": {}}[kind]
