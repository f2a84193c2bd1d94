{{- define "paddock.image" -}}
{{ .root.Values.image.repository }}/{{ .name }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "paddock.checkNamespace" -}}
{{- if ne .Release.Namespace "paddock-system" }}
{{- fail (printf "install this chart into the namespace paddock-system, not %s: agents' identities and admission policies name it (helm install paddock ... --namespace paddock-system --create-namespace)" .Release.Namespace) }}
{{- end }}
{{- end }}
