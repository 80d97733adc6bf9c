package httpapi

import (
	_ "embed"
	"encoding/json"
	"net/http"
)

//go:embed openapi.json
var openAPI []byte

func (h *handler) openAPI(*http.Request, []byte) (any, error) { return json.RawMessage(openAPI), nil }
