"""Every message between Label Studio and Tandem: models of what comes in, builders of what goes out.

Incoming messages differ between versions, endpoints and settings of Label Studio. Whatever Tandem does not need is
ignored, and one malformed part does not lose the rest.
"""

from backend.label_studio.payloads.calls import (
    JobStatusRequest,
    PredictRequest,
    SetupRequest,
    encode_predict_response,
    encode_setup_response,
    encode_versions,
)
from backend.label_studio.payloads.events import parse_event, parse_training_request
from backend.label_studio.payloads.nouns import (
    SAMPLINGS,
    AnnotationPayload,
    ProjectPayload,
    RegionPayload,
    TaskPayload,
    decode_annotations,
    parse_identity,
)

__all__ = [
    "SAMPLINGS",
    "AnnotationPayload",
    "JobStatusRequest",
    "PredictRequest",
    "ProjectPayload",
    "RegionPayload",
    "SetupRequest",
    "TaskPayload",
    "decode_annotations",
    "encode_predict_response",
    "encode_setup_response",
    "encode_versions",
    "parse_event",
    "parse_identity",
    "parse_training_request",
]
