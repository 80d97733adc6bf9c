// Package kds is the key derivation service: it releases keys to enclaves
// that prove what they are, and to nobody else.
//
// A release authenticates evidence, checks the constraint, derives the key,
// records the release through the replicated log and only then replies, all
// in one function; without a record there is no key. The record is rejected
// by every node if policy, collateral or epoch moved during the decision, so
// a revocation committed in between wins.
//
// The package is one Service over small interfaces that it declares. It knows
// nothing of HTTP or TLS: callers hand it the evidence of a channel together
// with the report data which that channel demands. The pure parts are
// kds/api, kds/derive and kds/state. DESIGN.md beside this file holds the
// derivation, the receipts and the rules of the state machine.
package kds
