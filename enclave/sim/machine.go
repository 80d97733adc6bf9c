package sim

import (
	"context"
	"encoding/hex"
	"fmt"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/enclave"
	"github.com/claviger/claviger/enclave/secret"
)

// Machine is a simulated computer: one platform with its PPID, TCB and sealing
// keys. It is safe for concurrent use.
type Machine struct {
	world    *World
	platform *simpki.Platform
	root     secret.Key // what the processor's fuses hold
}

// MachineOption changes what kind of machine World.Machine makes.
type MachineOption func(*simpki.PlatformConfig)

// OutOfDateTCB makes a machine that misses a microcode update.
func OutOfDateTCB() MachineOption { return WithTCB(attest.StatusOutOfDate) }

// WithTCB makes a machine whose platform evaluates to status.
func WithTCB(status attest.Status) MachineOption {
	return func(c *simpki.PlatformConfig) { c.TCB = status }
}

// WithQE makes a machine whose quoting enclaves evaluate to status: UpToDate,
// OutOfDate, Revoked or NotSupported.
func WithQE(status attest.Status) MachineOption {
	return func(c *simpki.PlatformConfig) { c.QE = status }
}

// WithModule makes a machine whose TDX module evaluates to status, as for WithQE.
func WithModule(status attest.Status) MachineOption {
	return func(c *simpki.PlatformConfig) { c.Module = status }
}

// WithFMSPC makes a machine of another platform family.
func WithFMSPC(fmspc [6]byte) MachineOption {
	return func(c *simpki.PlatformConfig) { c.FMSPC = fmspc }
}

// WithProcessorCA makes a machine whose PCK certificate comes from the processor
// CA instead of the platform CA.
func WithProcessorCA() MachineOption {
	return func(c *simpki.PlatformConfig) { c.CA = simpki.ProcessorCA }
}

// Machine returns the machine called name, 1 to 255 bytes. The same name is the
// same machine, with the same identity and sealing keys, in every process that
// shares the world; options describe its present state.
func (w *World) Machine(name string, options ...MachineOption) (*Machine, error) {
	config := simpki.PlatformConfig{Name: name}
	for _, option := range options {
		option(&config)
	}
	config.Name = name
	platform, err := w.pki.Platform(config)
	if err != nil {
		return nil, fmt.Errorf("sim: machine %.64q: %w", name, err)
	}
	root, err := w.root.Derive("machine/"+name, secret.MaxSize)
	if err != nil {
		return nil, fmt.Errorf("sim: machine %.64q: %w", name, err)
	}
	return &Machine{world: w, platform: platform, root: root}, nil
}

// Name returns the machine's name.
func (m *Machine) Name() string { return m.platform.Name() }

// World returns the world that the machine is in.
func (m *Machine) World() *World { return m.world }

// Platform returns the simulated hardware, for scripts.
func (m *Machine) Platform() *simpki.Platform { return m.platform }

// PlatformID returns the machine's identity as verified claims state it.
func (m *Machine) PlatformID() [32]byte { return attest.Platform{PPID: m.platform.PPID()}.ID() }

// Revoke puts the machine's PCK certificate on the revocation list from now on.
func (m *Machine) Revoke() { m.world.pki.Revoke(m.platform, m.world.clock()) }

// Launch starts an image. It fails with ErrImage.
func (m *Machine) Launch(image Image) (*Enclave, error) {
	if err := image.check(); err != nil {
		return nil, err
	}
	return &Enclave{machine: m, image: image}, nil
}

// Enclave is an image that runs on a machine.
type Enclave struct {
	machine *Machine
	image   Image
}

var _ enclave.TEE = (*Enclave)(nil)

// Kind returns enclave.Sim, whatever the image's kind: no caller shall take it for
// hardware. Image().Kind says which quotes it makes.
func (e *Enclave) Kind() enclave.Kind { return enclave.Sim }

// Image returns the image that was launched.
func (e *Enclave) Image() Image { return e.image }

// Machine returns the machine that the enclave runs on.
func (e *Enclave) Machine() *Machine { return e.machine }

// Quote returns a quote of version 3 (SGX image) or 4 (TDX image) over reportData.
func (e *Enclave) Quote(ctx context.Context, reportData [enclave.ReportDataSize]byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if e.image.Kind == enclave.TDX {
		return e.machine.platform.QuoteTDX(e.image.body(reportData))
	}
	return e.machine.platform.QuoteSGX(e.image.report(reportData))
}

// SealingKey returns the key that machine, code and label determine: as on SGX
// hardware the same image on another machine, another version, and a debug launch
// each get another key. For a TDX image it fails with enclave.ErrUnsupported, as on
// hardware.
func (e *Enclave) SealingKey(ctx context.Context, label string) (secret.Key, error) {
	if err := enclave.CheckLabel(label); err != nil {
		return secret.Key{}, err
	}
	if err := ctx.Err(); err != nil {
		return secret.Key{}, err
	}
	if e.image.Kind != enclave.SGX {
		return secret.Key{}, fmt.Errorf("sim: %w: TDX has no sealing key; get a key from the KDS", enclave.ErrUnsupported)
	}
	code := e.image.MREnclave()
	bound, err := e.machine.root.Derive(fmt.Sprintf("seal/%s/debug=%t", hex.EncodeToString(code[:]), e.image.Debug),
		secret.MaxSize)
	if err != nil {
		return secret.Key{}, err
	}
	defer bound.Destroy()
	return bound.Derive(label, enclave.SealingKeySize)
}
