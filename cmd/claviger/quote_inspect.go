package main

import (
	"encoding/hex"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/cmd/internal/cli"
)

// inspection is what a quote says about itself. Nothing in it is verified, and the JSON says so first.
type inspection struct {
	Verified   bool         `json:"verified"` // always false
	TEE        attest.TEE   `json:"tee"`
	Version    int          `json:"quote_version"`
	Size       int          `json:"size"` // bytes
	QEVendorID string       `json:"qe_vendor_id"`
	ReportData string       `json:"report_data"`
	Debug      bool         `json:"debug"`
	SGX        *sgxFields   `json:"sgx,omitempty"`
	TDX        *tdxFields   `json:"tdx,omitempty"`
	Platform   *pckPlatform `json:"platform,omitempty"`
	PCKError   string       `json:"platform_error,omitempty"` // why Platform is absent
}

type sgxFields struct {
	MREnclave  string `json:"mr_enclave"`
	MRSigner   string `json:"mr_signer"`
	ISVProdID  uint16 `json:"isv_prod_id"`
	ISVSVN     uint16 `json:"isv_svn"`
	Attributes string `json:"attributes"`
	CPUSVN     string `json:"cpu_svn"`
}

type tdxFields struct {
	MRTD         string    `json:"mr_td"`
	RTMR         [4]string `json:"rtmr"`
	MRSEAM       string    `json:"mr_seam"`
	MRSignerSEAM string    `json:"mr_signer_seam"`
	TDAttributes string    `json:"td_attributes"`
	XFAM         string    `json:"xfam"`
	TEETCBSVN    string    `json:"tee_tcb_svn"`
}

type pckPlatform struct {
	FMSPC string `json:"fmspc"`
	PCEID string `json:"pce_id"`
	CA    string `json:"ca"`
}

func quoteInspectCommand(s *cli.Streams) *cobra.Command {
	return &cobra.Command{
		Use: "inspect FILE", Short: "Show what a quote says, without verifying anything",
		Long: `Shows the fields of a raw SGX or TDX quote. Nothing is verified: whoever wrote the file chose every value.
Use the FMSPC and CA it prints to find the right collateral, then 'claviger quote verify'.`,
		Example: "  claviger quote inspect quote.bin\n  claviger quote inspect --json - <quote.bin",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			raw, err := s.ReadFile(args[0], attest.MaxQuote)
			if err != nil {
				return err
			}
			q, err := attest.Parse(raw)
			if err != nil {
				return err
			}
			in := inspect(q, len(raw))
			return s.Print(in, in.write)
		},
	}
}

func inspect(q *attest.Quote, size int) *inspection {
	data := q.ReportData()
	in := &inspection{TEE: q.TEE(), Version: q.Version(), Size: size, ReportData: hex.EncodeToString(data[:])}
	if x := q.SGX(); x != nil {
		r := &x.Report
		in.QEVendorID, in.Debug = hex.EncodeToString(x.Header.QEVendorID[:]), r.Debug()
		in.SGX = &sgxFields{
			MREnclave: hex.EncodeToString(r.MREnclave[:]), MRSigner: hex.EncodeToString(r.MRSigner[:]),
			ISVProdID: r.ISVProdID, ISVSVN: r.ISVSVN,
			Attributes: hex.EncodeToString(r.Attributes[:]), CPUSVN: hex.EncodeToString(r.CPUSVN[:]),
		}
	}
	if x := q.TDX(); x != nil {
		b := &x.Body
		in.QEVendorID, in.Debug = hex.EncodeToString(x.Header.QEVendorID[:]), b.Debug()
		in.TDX = &tdxFields{
			MRTD: hex.EncodeToString(b.MRTD[:]), MRSEAM: hex.EncodeToString(b.MRSEAM[:]),
			MRSignerSEAM: hex.EncodeToString(b.MRSignerSEAM[:]), TDAttributes: hex.EncodeToString(b.TDAttributes[:]),
			XFAM: hex.EncodeToString(b.XFAM[:]), TEETCBSVN: hex.EncodeToString(b.TEETCBSVN[:]),
		}
		for i := range b.RTMR {
			in.TDX.RTMR[i] = hex.EncodeToString(b.RTMR[i][:])
		}
	}
	p, err := attest.PlatformOf(q)
	if err != nil {
		in.PCKError = err.Error()
		return in
	}
	in.Platform = &pckPlatform{FMSPC: hex.EncodeToString(p.FMSPC[:]), PCEID: hex.EncodeToString(p.PCEID[:]), CA: p.CA}
	return in
}

func (in *inspection) write(w io.Writer) {
	fmt.Fprintf(w, "NOT VERIFIED: whoever wrote this file chose every value below.\n")
	table := rows{w}
	table.add("quote", "%s version %d, %d bytes", in.TEE, in.Version, in.Size)
	if x := in.SGX; x != nil {
		table.add("MRENCLAVE", "%v", x.MREnclave)
		table.add("MRSIGNER", "%v", x.MRSigner)
		table.add("product, SVN", "%d, %d", x.ISVProdID, x.ISVSVN)
		table.add("attributes", "%v", x.Attributes)
		table.add("CPUSVN", "%v", x.CPUSVN)
	}
	if x := in.TDX; x != nil {
		table.add("MRTD", "%v", x.MRTD)
		for i, r := range x.RTMR {
			table.add(fmt.Sprintf("RTMR%d", i), "%v", r)
		}
		table.add("MRSEAM", "%v", x.MRSEAM)
		table.add("TD attributes", "%v", x.TDAttributes)
		table.add("XFAM", "%v", x.XFAM)
		table.add("TEE TCB SVN", "%v", x.TEETCBSVN)
	}
	table.add("debug", "%v", in.Debug)
	table.add("report data", "%v", in.ReportData)
	if p := in.Platform; p != nil {
		table.add("platform", "FMSPC %s, PCE %s, %s CA", p.FMSPC, p.PCEID, p.CA)
	} else {
		table.add("platform", "unknown: %s", in.PCKError)
	}
}
