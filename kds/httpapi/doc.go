// Package httpapi puts the key derivation service on HTTP: gorilla/mux routes, strict JSON in, JSON or RFC 9457 problem
// documents out. It decides nothing about keys.
//
// It runs over attested channels (see [Server] and package ratls): who asks is read from the connection, never from the
// request. [Public] lists the endpoints that answer a client without evidence; every other route refuses one before its
// body is read. A request reaches the [Service] only when its body is within the limit, is one JSON value without unknown
// or repeated keys, and passes the bounds of its type.
//
// Every member answers; one that knows the leader and cannot reach it says 307 with code "not_leader" and the leader's
// address in Location; a cluster without quorum answers 503 with code "no_quorum", one that is full of requests with code "busy".
// A fault of the service is logged here and answered with code "internal", without detail.
//
// Health, readiness and metrics are for the operator's network and live in [Admin], on a listener of its own.
package httpapi
