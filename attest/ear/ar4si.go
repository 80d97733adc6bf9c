package ear

import (
	"encoding/json"
	"fmt"
	"iter"
	"math"
)

// Value is one trustworthiness claim of AR4SI: a number whose range gives its tier (draft-ietf-rats-ar4si-10, section
// 2.3.2). Zero is the same as no claim.
type Value int8

// The values that this verifier asserts, with the meaning that AR4SI gives them (section 2.3.4). The names say for
// which claim a value is meant where that matters.
const (
	NoClaim         Value = 0
	UnknownElements Value = 1 // the evidence contains elements that inhibit evaluation
	CryptoFailed    Value = 99

	Genuine              Value = 2  // hardware
	KnownVulnerabilities Value = 32 // hardware, configuration
	HardwareRefused      Value = 96 // hardware is recognised and contraindicated
	HardwareUnknown      Value = 97 // hardware or firmware is not recognised, but should be

	NoKnownVulnerabilities Value = 3  // configuration
	ElementsUnavailable    Value = 36 // configuration: security-relevant elements cannot be judged
	Unsupportable          Value = 96 // configuration: exposes unacceptable vulnerabilities

	ApprovedAtBoot   Value = 3  // executables: only approved ones were loaded while booting
	Unrecognized     Value = 33 // executables: some are not recognised
	Contraindicating Value = 96 // executables: some are contraindicated

	Opaque  Value = 2  // runtime-opaque: encrypted, inside a TEE
	Visible Value = 96 // runtime-opaque: memory is visible in the host

	// UnderSimulatedRoot takes the place of every affirming value when the root of trust is simulated. It lies in the
	// range AR4SI leaves for non-standard reasons to affirm: who compares with a standard value is not fooled.
	UnderSimulatedRoot Value = -2
)

// Tier returns the tier that v lies in.
func (v Value) Tier() Status {
	switch {
	case v >= -1 && v <= 1:
		return None
	case v >= -32 && v < 32:
		return Affirming
	case v >= -96 && v < 96:
		return Warning
	}
	return Contraindicated
}

// Status is a trustworthiness tier. The zero Status is None, which affirms nothing.
type Status int8

// The tiers, with AR4SI's numbers. JSON has their names.
const (
	None            Status = 0
	Affirming       Status = 2
	Warning         Status = 32
	Contraindicated Status = 96
)

var statusNames = map[Status]string{None: "none", Affirming: "affirming", Warning: "warning", Contraindicated: "contraindicated"}

// String returns the name that JSON uses.
func (s Status) String() string {
	if name, ok := statusNames[s]; ok {
		return name
	}
	return fmt.Sprintf("status(%d)", int8(s))
}

// MarshalText implements encoding.TextMarshaler; a number that is no tier is ErrInput.
func (s Status) MarshalText() ([]byte, error) {
	name, ok := statusNames[s]
	if !ok {
		return nil, fmt.Errorf("%w: status %d", ErrInput, int8(s))
	}
	return []byte(name), nil
}

// UnmarshalText reads a name; anything else is ErrMalformed, and the receiver stays as it was.
func (s *Status) UnmarshalText(text []byte) error {
	for status, name := range statusNames {
		if name == string(text) {
			*s = status
			return nil
		}
	}
	return fmt.Errorf("%w: status %.20q", ErrMalformed, text)
}

// Vector is the trustworthiness vector: one value for each of AR4SI's claims. This verifier asserts configuration,
// executables, hardware and runtime-opaque; the others are for reading results of other verifiers.
type Vector struct {
	InstanceIdentity, Configuration, Executables, FileSystem, Hardware, RuntimeOpaque, StorageOpaque, SourcedData Value
}

// fields yields the claims by name, in the order of AR4SI's labels.
func (v *Vector) fields() iter.Seq2[string, *Value] {
	return func(yield func(string, *Value) bool) {
		_ = yield("instance-identity", &v.InstanceIdentity) && yield("configuration", &v.Configuration) &&
			yield("executables", &v.Executables) && yield("file-system", &v.FileSystem) && yield("hardware", &v.Hardware) &&
			yield("runtime-opaque", &v.RuntimeOpaque) && yield("storage-opaque", &v.StorageOpaque) && yield("sourced-data", &v.SourcedData)
	}
}

// All yields the claims that are made, by name, in the order of AR4SI's labels.
func (v Vector) All() iter.Seq2[string, Value] {
	return func(yield func(string, Value) bool) {
		for name, value := range v.fields() {
			if *value != NoClaim && !yield(name, *value) {
				return
			}
		}
	}
}

// Worst returns the worst tier of all claims that are made; None if there is none. A claim of tier none counts as no
// claim (section 2.3.2).
func (v Vector) Worst() Status {
	worst := None
	for _, value := range v.All() {
		worst = max(worst, value.Tier())
	}
	return worst
}

// MarshalJSON writes the claims that are made. AR4SI wants at least one entry: a vector without claims says so about
// the hardware.
func (v Vector) MarshalJSON() ([]byte, error) {
	out := map[string]Value{}
	for name, value := range v.All() {
		out[name] = value
	}
	if len(out) == 0 {
		out["hardware"] = NoClaim
	}
	return json.Marshal(out)
}

// UnmarshalJSON reads a vector. Names that AR4SI does not define are ignored, as EAR demands of unknown claims, but
// count: a later claim that contraindicates must not be lost, so they may only be of the tiers none and affirming.
func (v *Vector) UnmarshalJSON(raw []byte) error {
	var in map[string]int64
	if err := json.Unmarshal(raw, &in); err != nil || len(in) == 0 {
		return fmt.Errorf("%w: trustworthiness vector", ErrMalformed)
	}
	var out Vector
	for name, value := range in {
		if value < math.MinInt8 || value > math.MaxInt8 {
			return fmt.Errorf("%w: trustworthiness claim of %d", ErrMalformed, value)
		}
		known := false
		for field, at := range out.fields() {
			if field == name {
				*at, known = Value(value), true
			}
		}
		if tier := Value(value).Tier(); !known && tier > Affirming {
			return fmt.Errorf("%w: unknown trustworthiness claim %.40q is of tier %s", ErrMalformed, name, tier)
		}
	}
	*v = out
	return nil
}
