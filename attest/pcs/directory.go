package pcs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/claviger/claviger/attest"
)

// DirectoryConfig configures a Directory. Path and Verifier are required.
type DirectoryConfig struct {
	Path     string // an existing directory
	Verifier *attest.Verifier
	// Update and Evaluation choose among the files for one platform in Collateral, as in a Request.
	Update     Update
	Evaluation int
	// Clock tells the time to verify at; nil means time.Now.
	Clock func() time.Time
}

// Directory keeps collateral in files: the cache of a Source, and the whole source for a site without a network. A set is
// one bundle (attest.Collateral.Marshal) named <tee>-<fmspc>-<ca>.json, with -early, -standard or -e<number> before the dot
// when the request says so; beside the bundles lie pck-platform.pem and pck-processor.pem, the chains of the PCK CAs. Files
// that people put there by these names are served too.
//
// Nothing in the directory is trusted: every load verifies signatures and validity. Writes are atomic. It is safe for
// concurrent use, also by several processes; of two that write the same file the last one wins.
type Directory struct {
	config DirectoryConfig
}

// OpenDirectory opens a directory. It fails with ErrConfig or ErrDisk.
func OpenDirectory(config DirectoryConfig) (*Directory, error) {
	if config.Verifier == nil {
		return nil, fail(fmt.Errorf("%w: no verifier", ErrConfig), "set DirectoryConfig.Verifier")
	}
	probe := Request{TEE: attest.SGX, CA: PlatformCA, Update: config.Update, Evaluation: config.Evaluation}
	if err := probe.check(); err != nil {
		return nil, fail(fmt.Errorf("%w: %w", ErrConfig, err), "choose an update or an evaluation number")
	}
	if config.Clock == nil {
		config.Clock = time.Now
	}
	info, err := os.Stat(config.Path)
	if err != nil {
		return nil, disk(err)
	}
	if !info.IsDir() {
		return nil, fail(fmt.Errorf("%w: %s is not a directory", ErrDisk, config.Path), "name a directory")
	}
	return &Directory{config}, nil
}

func disk(err error) error {
	return fail(fmt.Errorf("%w: %w", ErrDisk, err), "check that the directory exists, its permissions and the space left")
}

// Collateral returns the collateral for a quote. The quote is only parsed; its own PCK CA chain, which the verifier's root
// must vouch for, verifies the revocation list, so a bundle alone suffices. It fails with ErrNoBundle, ErrCorrupt,
// ErrExpired, ErrVerify or ErrMismatch.
func (d *Directory) Collateral(ctx context.Context, quote []byte) (*attest.Collateral, error) {
	if err := ctx.Err(); err != nil {
		return nil, fail(fmt.Errorf("%w: %w", ErrTimeout, err), "allow more time")
	}
	r, issuer, err := forQuote(quote)
	if err != nil {
		return nil, err
	}
	r.Update, r.Evaluation = d.config.Update, d.config.Evaluation
	set, err := d.load(r, issuer)
	if err != nil {
		return nil, err
	}
	return set.Collateral, nil
}

// Load returns the set for a request, verified now. It fails as Collateral does, and with ErrNoIssuer when the file of the
// CA's chain is missing.
func (d *Directory) Load(r Request) (*Set, error) {
	set, err := d.load(r, nil)
	if err != nil {
		return nil, err
	}
	return set, nil
}

// load reads and verifies a set; a nil issuer stands for the file of the CA. A genuine set that has expired is returned
// beside ErrExpired, for comparison.
func (d *Directory) load(r Request, issuer []byte) (*Set, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	path := d.path(r)
	raw, written, err := readFile(path, attest.MaxCollateral)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, &Error{Path: path, Err: ErrNoBundle, Hint: "fetch or import the collateral of this platform"}
	case errors.Is(err, ErrTooLarge):
		return nil, corrupt(path, err)
	case err != nil:
		return nil, disk(err)
	}
	c, err := attest.ParseCollateral(raw)
	if err != nil {
		return nil, corrupt(path, err)
	}
	if issuer == nil {
		if issuer, err = d.issuer(r.CA); err != nil {
			return nil, err
		}
	}
	now := d.config.Clock()
	report, err := verify(d.config.Verifier, c, issuer, r, now)
	if report == nil {
		asError(err).Path = path
		return nil, err
	}
	if written.After(now) {
		written = now
	}
	set := &Set{Request: r, Collateral: c, PCKIssuer: issuer, Report: report, Fetched: written}
	if err != nil {
		asError(err).Path = path
	}
	return set, err
}

func corrupt(path string, err error) error {
	return &Error{Path: path, Err: &refused{ErrCorrupt, err}, Hint: "delete the file, then fetch or import it again"}
}

// issuer reads the chain of a PCK CA. It is verified with the set.
func (d *Directory) issuer(ca string) ([]byte, error) {
	path := d.issuerPath(ca)
	raw, _, err := readFile(path, maxIssuer)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fail(fmt.Errorf("%w: %s", ErrNoIssuer, filepath.Base(path)), "give a quote from the platform, or copy the file from where the collateral was fetched")
	case errors.Is(err, ErrTooLarge):
		return nil, corrupt(path, err)
	case err != nil:
		return nil, disk(err)
	}
	chain, err := canonicalChain(raw)
	if err != nil {
		return nil, corrupt(path, err)
	}
	return chain, nil
}

// Save verifies a set and writes it, with the chain of its CA. It refuses with ErrRollback what is older than the genuine
// set that is there; a file that does not verify does not stand in the way.
func (d *Directory) Save(set *Set) error {
	if set == nil {
		return fail(ErrRequest, "pass a set that was fetched")
	}
	if err := set.Request.check(); err != nil {
		return err
	}
	report, err := verify(d.config.Verifier, set.Collateral, set.PCKIssuer, set.Request, d.config.Clock())
	if err != nil {
		return err
	}
	old, _ := d.load(set.Request, set.PCKIssuer)
	if old == nil { // the CA may have another key now
		old, _ = d.load(set.Request, nil)
	}
	if old != nil {
		if err := notOlder(&old.Report.Set, &report.Set); err != nil {
			return err
		}
	}
	raw, err := set.Collateral.Marshal()
	if err != nil {
		return fail(&refused{ErrVerify, err}, "fetch the collateral again")
	}
	d.prune(d.path(set.Request))
	// The chain goes first: a bundle without it cannot be loaded, a chain without bundles does no harm.
	if have, _, err := readFile(d.issuerPath(set.Request.CA), maxIssuer); err != nil || !bytes.Equal(have, set.PCKIssuer) {
		if err := writeFile(d.issuerPath(set.Request.CA), set.PCKIssuer, set.Fetched); err != nil {
			return disk(err)
		}
	}
	if err := writeFile(d.path(set.Request), raw, set.Fetched); err != nil {
		return disk(err)
	}
	return nil
}

// Import verifies a one-file bundle and keeps it under the request that its contents answer, with the given update or
// evaluation number of the directory's configuration. pckIssuer verifies the revocation list: a PEM chain as
// attest.PCKIssuer takes it from a quote or as an export carries it; nil tries those that are already in the directory.
func (d *Directory) Import(bundle, pckIssuer []byte) (*Set, error) {
	c, err := attest.ParseCollateral(bundle)
	if err != nil {
		return nil, fail(&refused{ErrCorrupt, err}, "export the bundle again, and copy it as a binary file")
	}
	issuers := [][]byte{pckIssuer}
	if pckIssuer == nil {
		if issuers, err = d.issuers(); err != nil {
			return nil, err
		}
	}
	now := d.config.Clock()
	var last error
	for _, issuer := range issuers {
		// The contents say what the set is for: any time will do to read that, since Save verifies again.
		report, err := d.config.Verifier.VerifyCollateral(c, issuer, now, attest.WithGrace(lastGrace))
		if err != nil {
			last = fail(&refused{ErrVerify, err}, "use a bundle and a PCK CA chain under the verifier's root")
			continue
		}
		set := &Set{Collateral: c, PCKIssuer: issuer, Report: report, Fetched: now, Request: Request{
			TEE: report.TEE, FMSPC: report.FMSPC, CA: report.CA, Update: d.config.Update, Evaluation: d.config.Evaluation,
		}}
		if err := d.Save(set); err != nil {
			return nil, err
		}
		return set, nil
	}
	return nil, last
}

// issuers returns the CA chains in the directory, at least one.
func (d *Directory) issuers() (list [][]byte, err error) {
	for _, ca := range []string{PlatformCA, ProcessorCA} {
		chain, e := d.issuer(ca)
		if e != nil {
			err = e
			continue
		}
		list = append(list, chain)
	}
	if len(list) != 0 {
		return list, nil
	}
	return nil, err
}

const (
	bundleSuffix = ".json"
	tempPrefix   = ".tmp-"
)

func (d *Directory) path(r Request) string {
	return filepath.Join(d.config.Path, r.name()+bundleSuffix)
}

func (d *Directory) issuerPath(ca string) string {
	return filepath.Join(d.config.Path, "pck-"+ca+".pem")
}

// prune makes room for one more file by deleting the oldest bundles beyond the limit, and sweeps up after crashes. Where directories cannot be listed
// (inside EGo) there is no need: only requests that Intel answered reach the disk, and those are a few hundred.
func (d *Directory) prune(next string) {
	if _, err := os.Stat(next); err == nil {
		return
	}
	entries, err := os.ReadDir(d.config.Path)
	if err != nil {
		return
	}
	type file struct {
		path string
		time time.Time
	}
	var files []file
	for _, entry := range entries {
		name := entry.Name()
		info, err := entry.Info()
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		// Left behind by a process that died in writing; a living one needs no hour.
		if strings.HasPrefix(name, tempPrefix) && d.config.Clock().Sub(info.ModTime()) > time.Hour {
			_ = os.Remove(filepath.Join(d.config.Path, name))
			continue
		}
		if ours := strings.HasPrefix(name, "sgx-") || strings.HasPrefix(name, "tdx-"); ours && strings.HasSuffix(name, bundleSuffix) {
			files = append(files, file{filepath.Join(d.config.Path, name), info.ModTime()})
		}
	}
	slices.SortFunc(files, func(a, b file) int { return a.time.Compare(b.time) })
	for len(files) >= maxFiles {
		if err := os.Remove(files[0].path); err != nil {
			return // the write that follows will say more
		}
		files = files[1:]
	}
}

// readFile reads a regular file of at most limit bytes, and says when it was written.
func readFile(path string, limit int) ([]byte, time.Time, error) {
	info, err := os.Stat(path) // first: to open a pipe would wait for its writer
	if err != nil {
		return nil, time.Time{}, err
	}
	if !info.Mode().IsRegular() {
		return nil, time.Time{}, fmt.Errorf("%s is not a regular file", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, time.Time{}, err
	}
	defer file.Close()
	raw, err := io.ReadAll(io.LimitReader(file, int64(limit)+1))
	if err != nil {
		return nil, time.Time{}, err
	}
	if len(raw) > limit {
		return nil, time.Time{}, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, limit)
	}
	return raw, info.ModTime(), nil
}

// writeFile replaces a file as a whole: a reader, and a machine that loses power, sees the old one or the new one.
func writeFile(path string, raw []byte, written time.Time) (err error) {
	file, err := os.CreateTemp(filepath.Dir(path), tempPrefix+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = file.Close()
			_ = os.Remove(file.Name())
		}
	}()
	if _, err = file.Write(raw); err != nil {
		return err
	}
	if err = file.Chmod(0o644); err != nil {
		return err
	}
	if err = file.Sync(); err != nil {
		return err
	}
	if err = file.Close(); err != nil {
		return err
	}
	// The time of the file is when its contents were fetched. It only chooses when to renew them, so a failure is harmless.
	_ = os.Chtimes(file.Name(), written, written)
	return os.Rename(file.Name(), path)
}
