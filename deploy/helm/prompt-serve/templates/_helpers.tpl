{{- define "prompt-serve.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "prompt-serve.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "prompt-serve.metadata" -}}
name: {{ include "prompt-serve.name" . }}
labels:
  {{- include "prompt-serve.selector" . | nindent 2 }}
  app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .Release.Service }}
  helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{/* Claim of the SQLite registry; empty with an external database. */}}
{{- define "prompt-serve.claim" -}}
{{- if not .Values.database.existingSecret -}}
{{- .Values.persistence.existingClaim | default (include "prompt-serve.name" .) -}}
{{- end -}}
{{- end -}}
