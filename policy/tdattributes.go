package policy

import (
	"encoding/binary"
	"fmt"

	"github.com/claviger/claviger/attest"
)

// Bits of TDATTRIBUTES, a little-endian 64-bit field; Intel TDX Module ABI
// specification, section "TD_PARAMS: ATTRIBUTES".
const (
	tdDebug         = 1 << 0  // the host may read and write the TD
	tdLASS          = 1 << 27 // linear address space separation
	tdSeptVEDisable = 1 << 28 // no #VE on access to a page the host has taken away
	tdMigratable    = 1 << 29 // a service TD may move the TD, with its memory
	tdPKS           = 1 << 30 // supervisor protection keys
	tdKeyLocker     = 1 << 31 // key locker
	tdPerfmon       = 1 << 63 // performance monitoring of the TD's own
	tdKnown         = tdDebug | tdLASS | tdSeptVEDisable | tdMigratable | tdPKS | tdKeyLocker | tdPerfmon
)

// tdAttributes makes the checks that no constraint can switch off. DEBUG is
// judged with SEC; here only its two reports are compared.
func (k *checker) tdAttributes(e *attest.TDXClaims) {
	bits := binary.LittleEndian.Uint64(e.TDAttributes[:])
	shown := fmt.Sprintf("TDATTRIBUTES %016x", bits)
	if debug := bits&tdDebug != 0; debug != k.claims.Debug {
		k.fail("DEBUG", "one answer whether this is a debug TD", shown, "the claims contradict each other; report this as a fault")
	}
	if bits&tdSeptVEDisable == 0 {
		k.fail("SEPT_VE_DISABLE", "set", shown, "without it the host can interrupt the TD at memory accesses of its choice; start the TD with it")
	}
	if unknown := bits &^ tdKnown; unknown != 0 {
		k.fail("TDATTRIBUTES", "known attributes only", fmt.Sprintf("unknown bits %016x", unknown),
			"what these attributes allow is not known to this version; start the TD without them or update the service")
	}
	if bits&tdMigratable == 0 {
		return
	}
	switch _, named := k.fields["SERVICETD"]; {
	case k.node:
		k.fail("MIGRATABLE", "cleared, for a node of the cluster", shown, "start the TD without it: root secrets must not move with a TD")
	case !named: // a named one that differs has failed as SERVICETD
		k.fail("MIGRATABLE", "cleared, or the service TD named", shown, "start the TD without it, or name its service TD with SERVICETD:<hex>")
	}
}
