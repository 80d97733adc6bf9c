// Package pcs fetches, checks, keeps and carries collateral: what Intel's provisioning certification service (PCS)
// publishes about platforms, and what a verifier of quotes needs.
//
//	client, err := pcs.NewClient(pcs.Config{Verifier: verifier})     // Intel's service; Config.BaseURL names a PCCS
//	source, err := pcs.NewSource(pcs.SourceConfig{Fetcher: client, Verifier: verifier, Dir: dir})
//	defer source.Close()
//	collateral, err := source.Collateral(ctx, quote)
//
// Client speaks the API version 4 of PCS and of PCCS. Source keeps what a Client fetched, in memory and in a Directory, and
// renews it before it expires. Directory alone serves sites without a network from files carried there; its Collateral
// method has the same form. A one-file bundle is attest.Collateral.Marshal.
//
// For the commands: "collateral fetch" is RequestFor (or a Request from flags), NewClient, Fetch and Collateral.Marshal;
// "export" is OpenDirectory, Load and Collateral.Marshal, with PCKIssuer in a file beside; "import" is OpenDirectory and
// Import, with the PCK CA chain from that file or by attest.PCKIssuer from a quote. The examples show each.
//
// What the package guarantees: everything it hands out was verified under the verifier's root when it was fetched or
// loaded, has not expired, is for the TEE, platform family and CA that were asked for, and is not older than what the cache knew for the same
// Request: evaluation numbers, issue dates and CRL numbers do not fall (ErrRollback). Services, proxies and disks are
// untrusted: answers are bounded, redirects to other hosts refused, files verified again whenever they are loaded. A host that
// deletes the cache can make it forget; replicated state protects a cluster against that, not this package.
//
// What it does not do: judge a quote. Collateral that passed here is verified again by attest.Verifier.Verify.
//
// Every failure is an *Error with a sentinel (ErrNotFound, ErrTimeout, …) and a clause that says what to do.
//
// Sources: Intel SGX and TDX Provisioning Certification Service API, version 4; Intel's documentation of the PCCS API; RFC
// 9110, section 10.2.3 (Retry-After). DESIGN.md beside this file gives the reasons.
package pcs
